package simulator

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"regexp"
	"sort"
	"strings"
	"sync"
	"syscall"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// grain is the unit in which changes are tracked, as ESXi 8 does for small disks.
const grain = 64 << 10

const (
	seekData = 3
	seekHole = 4
)

var (
	grainSeed = maphash.MakeSeed()
	zeroGrain = make([]byte, grain)
	deltaName = regexp.MustCompile(`-[0-9]{6}\.vmdk$`)
)

// disk is one virtual disk of the lab: the bytes lie in the flat file, whatever chain of names vSphere shows for it.
type disk struct {
	sync.Mutex
	Flat     string
	Capacity int64
	UUID     string

	tracked    bool
	awaitsStun bool
	track      string   // uuid part of the change ids
	seq        uint32   // last state that has a change id
	hashes     []uint64 // of each grain in that state, 0 for zeros
	last       []uint32 // state in which each grain last changed
	frozen     map[types.ManagedObjectReference]*frozenDisk
}

// frozenDisk is what a snapshot knows about one of its disks.
type frozenDisk struct {
	track string
	seq   uint32
	last  []uint32
	used  []bool
}

var (
	disksLock sync.Mutex
	disks     = map[string]*disk{} // by flat file
)

// flatOf gives the file that holds the bytes of a disk named "[datastore] folder/name.vmdk".
func flatOf(name string) string {
	var p object.DatastorePath
	if !p.FromString(name) {
		return ""
	}
	root := lab.datastore(p.Datastore)
	if root == "" {
		return ""
	}
	base := deltaName.ReplaceAllString(p.Path, ".vmdk")
	return path.Join(root, strings.TrimSuffix(base, ".vmdk")+"-flat.vmdk")
}

func diskOf(name string) *disk {
	disksLock.Lock()
	defer disksLock.Unlock()
	return disks[flatOf(name)]
}

func newDiskUUID() string {
	var b [14]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	h := "6000c29" + hex.EncodeToString(b[:])[:25]
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

// newTrack makes the uuid of a change id as vCenter writes it.
func newTrack() string {
	id := uuid.New()
	h := hex.EncodeToString(id[:])
	var b strings.Builder
	for i := 0; i < len(h); i += 2 {
		switch {
		case i == 16:
			b.WriteByte('-')
		case i > 0:
			b.WriteByte(' ')
		}
		b.WriteString(h[i : i+2])
	}
	return b.String()
}

func addDisk(name string, capacity int64, id string) *disk {
	if id == "" {
		id = newDiskUUID()
	}
	d := &disk{Flat: flatOf(name), Capacity: capacity, UUID: strings.ToLower(id), frozen: map[types.ManagedObjectReference]*frozenDisk{}}
	disksLock.Lock()
	disks[d.Flat] = d
	disksLock.Unlock()
	descriptor := strings.Replace(d.Flat, "-flat.vmdk", ".vmdk", 1)
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\ncreateType=\"vmfs\"\nRW %d VMFS \"%s\"\nddb.uuid = \"%s\"\n",
		capacity/512, path.Base(d.Flat), d.UUID)
	_ = os.WriteFile(descriptor, []byte(text), 0600)
	return d
}

func forgetDisk(flat string) {
	disksLock.Lock()
	delete(disks, flat)
	disksLock.Unlock()
}

// setTracking starts with a new identity each time: what was tracked before has a gap.
func (d *disk) setTracking(on bool) {
	d.Lock()
	defer d.Unlock()
	d.tracked, d.awaitsStun = on, false
	d.track, d.seq, d.hashes, d.last = "", 0, nil, nil
	if on {
		d.track = newTrack()
	}
}

func grains(capacity int64) int {
	return int((capacity + grain - 1) / grain)
}

// lockFlat waits for the guest's writers, who hold the same lock while they write.
func lockFlat(flat string) (*os.File, error) {
	f, err := os.OpenFile(flat, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// lockFlats takes the locks of all the disks of a VM in one order, so that its snapshot is one moment.
func lockFlats(all []*disk) ([]*os.File, error) {
	ordered := append([]*disk(nil), all...)
	sort.Slice(ordered, func(i, j int) bool { return ordered[i].Flat < ordered[j].Flat })
	held := map[string]*os.File{}
	for _, d := range ordered {
		f, err := lockFlat(d.Flat)
		if err != nil {
			for _, h := range held {
				_ = h.Close()
			}
			return nil, err
		}
		held[d.Flat] = f
	}
	files := make([]*os.File, len(all))
	for i, d := range all {
		files[i] = held[d.Flat]
	}
	return files, nil
}

// eachGrain calls f with every grain that lies in a data extent of the file.
func eachGrain(src *os.File, capacity int64, f func(i int, data []byte) error) error {
	buf := make([]byte, grain)
	fd := int(src.Fd())
	for at := int64(0); at < capacity; {
		start, err := syscall.Seek(fd, at, seekData)
		if err == syscall.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := syscall.Seek(fd, start, seekHole)
		if err != nil {
			return err
		}
		start -= start % grain
		if start < at {
			start = at
		}
		for at = start; at < end && at < capacity; at += grain {
			n := int64(grain)
			if capacity-at < n {
				n = capacity - at
			}
			if _, err = src.ReadAt(buf[:n], at); err != nil && err != io.EOF {
				return err
			}
			if err = f(int(at/grain), buf[:n]); err != nil {
				return err
			}
		}
	}
	return nil
}

func isZero(data []byte) bool {
	return bytes.Equal(data, zeroGrain[:len(data)])
}

// freeze copies the disk as it is to the file to, and gives its state a change id when tracking is on. The caller
// holds the flat file's lock in src.
func (d *disk) freeze(src *os.File, to string) (*frozenDisk, error) {
	d.Lock()
	defer d.Unlock()
	if lab.settings.get().LinkFrozen {
		return d.link(src, to)
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0600)
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	if err = dst.Truncate(d.Capacity); err != nil {
		return nil, err
	}
	hashes := make([]uint64, grains(d.Capacity))
	state := &frozenDisk{used: make([]bool, len(hashes))}
	err = eachGrain(src, d.Capacity, func(i int, data []byte) error {
		if isZero(data) {
			return nil
		}
		hashes[i] = maphash.Bytes(grainSeed, data) | 1
		state.used[i] = true
		_, err := dst.WriteAt(data, int64(i)*grain)
		return err
	})
	if err != nil {
		return nil, err
	}
	d.stamp(hashes, state)
	return state, nil
}

// link freezes without a copy. Untracked disks are not even read.
func (d *disk) link(src *os.File, to string) (*frozenDisk, error) {
	if err := os.Link(d.Flat, to); err != nil {
		return nil, err
	}
	state := &frozenDisk{used: make([]bool, grains(d.Capacity))}
	if !d.tracked {
		return state, nil
	}
	hashes := make([]uint64, len(state.used))
	err := eachGrain(src, d.Capacity, func(i int, data []byte) error {
		if !isZero(data) {
			hashes[i], state.used[i] = maphash.Bytes(grainSeed, data)|1, true
		}
		return nil
	})
	if err == nil {
		d.stamp(hashes, state)
	}
	return state, err
}

// stamp records which grains changed since the last state. Rewrites of equal bytes count, as they do in vSphere: the
// guest's writers log them.
func (d *disk) stamp(hashes []uint64, state *frozenDisk) {
	written := takeWrites(d.Flat)
	if !d.tracked {
		return
	}
	d.seq++
	last := make([]uint32, len(hashes))
	copy(last, d.last)
	for i, h := range hashes {
		before := uint64(0)
		if i < len(d.hashes) {
			before = d.hashes[i]
		}
		if h != before {
			last[i] = d.seq
		}
	}
	for _, e := range written {
		for i := e.offset / grain; i <= (e.offset+e.length-1)/grain && i < int64(len(last)); i++ {
			last[i] = d.seq
		}
	}
	d.hashes, d.last = hashes, last
	state.track, state.seq, state.last = d.track, d.seq, last
}

type extent struct{ offset, length int64 }

// takeWrites reads and empties the log that the guest's writers keep beside the disk.
func takeWrites(flat string) []extent {
	name := flat + ".writes"
	text, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	_ = os.Remove(name)
	var found []extent
	for _, line := range strings.Split(string(text), "\n") {
		var e extent
		if n, _ := fmt.Sscan(line, &e.offset, &e.length); n == 2 && e.length > 0 {
			found = append(found, e)
		}
	}
	return found
}

// copyFile copies the data extents of a file of the given capacity.
func copyFile(from, to string, capacity int64) error {
	src, err := lockFlat(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err = dst.Truncate(capacity); err != nil {
		return err
	}
	return eachGrain(src, capacity, func(i int, data []byte) error {
		if isZero(data) {
			return nil
		}
		_, err := dst.WriteAt(data, int64(i)*grain)
		return err
	})
}
