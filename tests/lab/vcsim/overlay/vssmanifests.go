package simulator

import (
	"archive/zip"
	"fmt"
	"os"
	"path"

	"github.com/vmware/govmomi/object"
)

const (
	backupComponents = `<BACKUP_COMPONENTS xmlns="x-schema:#VssComponentMetadata" version="1.2" backupType="copy"/>`
	writerMetadata   = `<WRITER_METADATA xmlns="x-schema:#VssWriterMetadataInfo" version="1.1"><IDENTIFICATION friendlyName="%s"/></WRITER_METADATA>`
)

// leaveManifest writes what the VSS of a guest leaves beside the VM: the document of the backup, and of each writer
// that took part, where any did. Its path, as vCenter tells it.
func (vm *VirtualMachine) leaveManifest(bare bool) string {
	name := path.Join(path.Dir(vm.Config.Files.VmPathName), vm.Name+"-vss_manifests1.zip")
	var at object.DatastorePath
	if !at.FromString(name) {
		return name
	}
	file, err := os.Create(path.Join(lab.datastore(at.Datastore), at.Path))
	if err != nil {
		return name
	}
	defer file.Close()
	archive := zip.NewWriter(file)
	documents := []string{backupComponents}
	if !bare {
		for _, writer := range []string{"System Writer", "SqlServerWriter"} {
			documents = append(documents, fmt.Sprintf(writerMetadata, writer))
		}
	}
	for n, text := range documents {
		title := "backup.xml"
		if n > 0 {
			title = fmt.Sprintf("writer%d.xml", n-1)
		}
		if entry, err := archive.Create(title); err == nil {
			_, _ = entry.Write([]byte(text))
		}
	}
	_ = archive.Close()
	return name
}
