package simulator

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// vmdkReader reads in sectors and knows where it is.
type vmdkReader struct {
	r      io.Reader
	sector uint64
}

func (v *vmdkReader) take(sectors uint64) ([]byte, error) {
	data := make([]byte, sectors*vmdkSector)
	_, err := io.ReadFull(v.r, data)
	v.sector += sectors
	return data, err
}

func (v *vmdkReader) header() (*vmdkHeader, error) {
	data, err := v.take(1)
	if err != nil {
		return nil, err
	}
	h := new(vmdkHeader)
	if err = binary.Read(bytes.NewReader(data), binary.LittleEndian, h); err != nil {
		return nil, err
	}
	switch {
	case h.Magic != 0x564d444b:
		return nil, errors.New("Not a supported disk format (invalid sparse VMDK header)")
	case h.Version != 3:
		return nil, errors.New("Not a supported disk format (sparse VMDK version too old)")
	case h.Flags != 0x30001 || h.CompressAlgo != 1 || h.GrainSize != grain/vmdkSector || h.NumGTEsPerGT != vmdkEntries:
		return nil, errors.New("Not a supported disk format (not stream-optimized)")
	}
	return h, nil
}

// receiveVMDK writes a stream-optimised VMDK into a disk as it comes by, as a host does, and holds its tables against
// what came.
func receiveVMDK(body io.Reader, d leasedDisk, alive func() bool) error {
	dst, err := os.OpenFile(d.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	in := &vmdkReader{r: body}
	h, err := in.header()
	if err != nil {
		return err
	}
	if h.Capacity*vmdkSector != uint64(d.capacity) {
		return fmt.Errorf("the stream is of a disk of %d sectors", h.Capacity)
	}
	if _, err = in.take(h.OverHead - 1); err != nil {
		return err
	}
	came := map[uint64]uint32{}   // by grain, where it was in the stream
	tables := map[uint32]uint64{} // by sector, which
	named, next := 0, uint64(0)
	var directory []uint32
	var footer *vmdkHeader
	directoryAt := uint64(0)
	for {
		at := in.sector
		marker, err := in.take(1)
		if err != nil {
			return err
		}
		value, size := binary.LittleEndian.Uint64(marker), binary.LittleEndian.Uint32(marker[8:])
		if size > 0 {
			number := value / h.GrainSize
			if value%h.GrainSize != 0 || value >= h.Capacity || number < next || !alive() {
				return fmt.Errorf("a grain at sector %d", value)
			}
			next = number + 1
			rest, err := in.take((uint64(size)+12+vmdkSector-1)/vmdkSector - 1)
			if err != nil {
				return err
			}
			if err = unpackGrain(dst, append(marker[12:], rest...)[:size], int64(value)*vmdkSector, d.capacity); err != nil {
				return err
			}
			came[number] = uint32(at)
			continue
		}
		kind := binary.LittleEndian.Uint32(marker[12:])
		if kind == 0 {
			break
		}
		if kind == 3 {
			if footer, err = in.header(); err != nil {
				return err
			}
			continue
		}
		place := in.sector
		data, err := in.take(value)
		if err != nil {
			return err
		}
		words := make([]uint32, len(data)/4)
		_ = binary.Read(bytes.NewReader(data), binary.LittleEndian, words)
		if kind == 2 {
			directory, directoryAt = words, place
			continue
		}
		table := ^uint64(0)
		for i, entry := range words {
			if entry == 0 {
				continue
			}
			if table == ^uint64(0) {
				table = (next - 1) / vmdkEntries
			}
			if came[table*vmdkEntries+uint64(i)] != entry {
				return fmt.Errorf("table %d names a grain that did not come", table)
			}
			named++
		}
		tables[uint32(place)] = table
	}
	if footer == nil || footer.GdOffset != directoryAt || named != len(came) {
		return errors.New("the stream lacks its footer, or its tables name other grains")
	}
	for i, at := range directory {
		if table, ok := tables[at]; at != 0 && (!ok || table != uint64(i)) {
			return errors.New("the directory names other tables")
		}
	}
	if n, _ := body.Read(make([]byte, 1)); n != 0 {
		return errors.New("something follows the end")
	}
	return nil
}

func unpackGrain(dst *os.File, packed []byte, at, capacity int64) error {
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	data, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	if len(data) != grain {
		return fmt.Errorf("a grain of %d bytes", len(data))
	}
	if capacity-at < grain {
		data = data[:capacity-at]
	}
	_, err = dst.WriteAt(data, at)
	return err
}
