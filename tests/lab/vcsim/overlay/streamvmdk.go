package simulator

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// vmdkHeader is SparseExtentHeader of the virtual disk format specification.
type vmdkHeader struct {
	Magic            uint32
	Version          uint32
	Flags            uint32
	Capacity         uint64
	GrainSize        uint64
	DescriptorOffset uint64
	DescriptorSize   uint64
	NumGTEsPerGT     uint32
	RgdOffset        uint64
	GdOffset         uint64
	OverHead         uint64
	UncleanShutdown  uint8
	Newlines         [4]byte
	CompressAlgo     uint16
	Pad              [433]byte
}

const (
	vmdkSector   = 512
	vmdkOverhead = 128
	vmdkEntries  = 512
	vmdkAtEnd    = ^uint64(0)
)

// vmdkWriter writes in sectors and knows where it is.
type vmdkWriter struct {
	w      io.Writer
	sector uint64
}

func (v *vmdkWriter) put(parts ...interface{}) error {
	var b bytes.Buffer
	for _, part := range parts {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return err
		}
	}
	if rest := b.Len() % vmdkSector; rest != 0 {
		b.Write(make([]byte, vmdkSector-rest))
	}
	v.sector += uint64(b.Len() / vmdkSector)
	_, err := v.w.Write(b.Bytes())
	return err
}

// marker comes before tables and the footer: how many sectors follow, and of what.
func (v *vmdkWriter) marker(sectors uint64, kind uint32) error {
	return v.put(sectors, uint32(0), kind)
}

// streamVMDK writes a disk as an ESXi host does: markers, compressed grains, each grain table after its grains, the
// directory and a footer at the end. Grains of zeros are left out.
func streamVMDK(w io.Writer, d leasedDisk, alive func() bool) error {
	src, err := os.Open(d.image)
	if err != nil {
		return err
	}
	defer src.Close()
	out := &vmdkWriter{w: w}
	header := vmdkHeader{
		Magic: 0x564d444b, Version: 3, Flags: 0x30001, Capacity: uint64(d.capacity / vmdkSector), GrainSize: grain / vmdkSector,
		DescriptorOffset: 1, DescriptorSize: 20, NumGTEsPerGT: vmdkEntries, GdOffset: vmdkAtEnd, OverHead: vmdkOverhead,
		Newlines: [4]byte{'\n', ' ', '\r', '\n'}, CompressAlgo: 1,
	}
	descriptor := make([]byte, (vmdkOverhead-1)*vmdkSector)
	copy(descriptor, fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n"+
		"RW %d SPARSE \"disk.vmdk\"\nddb.adapterType = \"lsilogic\"\n", header.Capacity))
	if err = out.put(header, descriptor); err != nil {
		return err
	}
	directory := make([]uint32, (grains(d.capacity)+vmdkEntries-1)/vmdkEntries)
	var table []uint32
	at := -1
	flush := func() error {
		if table == nil {
			return nil
		}
		if err := out.marker(uint64(len(table)*4/vmdkSector), 1); err != nil {
			return err
		}
		directory[at] = uint32(out.sector)
		entries := table
		table = nil
		return out.put(entries)
	}
	var packed bytes.Buffer
	err = eachGrain(src, d.capacity, func(i int, data []byte) error {
		if isZero(data) {
			return nil
		}
		if !alive() {
			return io.ErrUnexpectedEOF
		}
		if i/vmdkEntries != at {
			if err := flush(); err != nil {
				return err
			}
		}
		if table == nil {
			table, at = make([]uint32, vmdkEntries), i/vmdkEntries
		}
		packed.Reset()
		z, _ := zlib.NewWriterLevel(&packed, zlib.BestSpeed)
		_, _ = z.Write(data)
		if len(data) < grain {
			_, _ = z.Write(zeroGrain[len(data):])
		}
		_ = z.Close()
		table[i%vmdkEntries] = uint32(out.sector)
		return out.put(uint64(i)*grain/vmdkSector, uint32(packed.Len()), packed.Bytes())
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	sectors := uint64((len(directory)*4 + vmdkSector - 1) / vmdkSector)
	if err = out.marker(sectors, 2); err != nil {
		return err
	}
	header.GdOffset = out.sector
	if err = out.put(directory); err != nil {
		return err
	}
	if err = out.marker(1, 3); err != nil {
		return err
	}
	if err = out.put(header); err != nil {
		return err
	}
	return out.marker(0, 0)
}
