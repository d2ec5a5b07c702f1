package ipc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
)

// stateVersion is the first byte of an encoded state. It changes with every change of state.fields.
const stateVersion = 1

// state is what a suspended connection is besides its descriptor. Encoded: the version, the fields, and four bytes of
// CRC-32C over both, least significant first. It may come from a damaged or hostile place: decodeState checks all of
// it, as far as a peer could not have brought it about with commands.
type state struct {
	id, lastID            int64 // lastID: of the server, for the numbers of connections to come
	since, active         int64 // Unix time: in nanoseconds, in seconds
	name, libName, libVer string
	last                  string // command, "" none
	resp3, quiet, ending  bool
	skip                  int64
	track                 string

	channels, patterns, shards map[string]uint64
	at                         uint64

	unsent []byte
	timed  bool
	in     inputState
}

// inputState is what was read and is not a whole command yet; of one being skipped, what is still to come of it.
type inputState struct {
	bytes                     []byte
	skipping                  bool
	left, size, skip          int64
	argument                  bool
	skippedSize, skippedLimit int64
}

// fields walks over the fields, for both directions.
func (st *state) fields(w *walk) {
	w.int(&st.id)
	w.int(&st.lastID)
	w.int(&st.since)
	w.int(&st.active)
	w.text(&st.name)
	w.text(&st.libName)
	w.text(&st.libVer)
	w.text(&st.last)
	w.flag(&st.resp3)
	w.flag(&st.quiet)
	w.flag(&st.ending)
	w.int(&st.skip)
	w.text(&st.track)
	w.names(&st.channels)
	w.names(&st.patterns)
	w.names(&st.shards)
	w.uint(&st.at)
	w.bytes(&st.unsent)
	w.flag(&st.timed)
	w.bytes(&st.in.bytes)
	w.flag(&st.in.skipping)
	w.int(&st.in.left)
	w.int(&st.in.size)
	w.int(&st.in.skip)
	w.flag(&st.in.argument)
	w.int(&st.in.skippedSize)
	w.int(&st.in.skippedLimit)
}

func (st *state) encode() []byte {
	w := walk{b: []byte{stateVersion}}
	st.fields(&w)
	return seal(w.b)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends the checksum.
func seal(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

var errDamaged = errors.New("the state of a suspended connection is damaged: the peer has to connect again")

// decodeState takes nothing of b's memory but the bytes of the input.
func decodeState(b []byte) (*state, error) {
	if len(b) < 1+4 {
		return nil, errDamaged
	}
	if b[0] != stateVersion {
		return nil, fmt.Errorf("the state of a suspended connection has version %d, and this wscastd knows %d: the peer has to connect again", b[0], stateVersion)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, errDamaged
	}
	w := walk{b: body[1:], reading: true}
	var st state
	st.fields(&w)
	if w.bad || len(w.b) > 0 || !st.plausible() {
		return nil, errDamaged
	}
	st.unsent = bytes.Clone(st.unsent)
	return &st, nil
}

// maxID leaves room for the connections to come, in 292 years of one every nanosecond.
const maxID = 1 << 62

func (st *state) plausible() bool {
	ok := 0 < st.id && st.id <= st.lastID && st.lastID <= maxID &&
		plain(st.name) && plain(st.libName) && plain(st.libVer) &&
		(st.last == "" || commandsByName[st.last] != nil) &&
		0 <= st.skip && st.skip <= 1 &&
		slices.Contains([]string{"", "on", "optin", "optout", "bcast"}, st.track) &&
		len(st.channels) <= maxSubscriptions && len(st.shards) <= maxSubscriptions && len(st.patterns) <= maxPatterns
	for _, names := range []map[string]uint64{st.channels, st.shards} {
		for name := range names {
			ok = ok && ValidSubscription(name)
		}
	}
	for pattern := range st.patterns {
		ok = ok && len(pattern) <= maxPattern
	}
	if in := &st.in; in.skipping {
		ok = ok && 0 < in.left && in.left <= maxArguments && -1 <= in.size && in.size <= maxBulk &&
			0 <= in.skip && in.skip <= max(in.size, 0)
	}
	return ok
}

// walk appends fields to b, or, reading, takes them from its beginning; bad is set once there is something wrong. Numbers are
// varints (encoding/binary), everything else comes after its length.
type walk struct {
	b       []byte
	reading bool
	bad     bool
}

func (w *walk) uint(v *uint64) {
	if !w.reading {
		w.b = binary.AppendUvarint(w.b, *v)
		return
	}
	n := 0
	if *v, n = binary.Uvarint(w.b); n <= 0 {
		w.bad, w.b, *v = true, nil, 0
		return
	}
	w.b = w.b[n:]
}

func (w *walk) int(v *int64) {
	u := uint64(*v)<<1 ^ uint64(*v>>63) // as AppendVarint: small negative numbers are short
	w.uint(&u)
	*v = int64(u>>1) ^ -int64(u&1)
}

func (w *walk) flag(v *bool) {
	var u uint64
	if *v {
		u = 1
	}
	w.uint(&u)
	*v, w.bad = u == 1, w.bad || u > 1
}

func (w *walk) bytes(v *[]byte) {
	n := uint64(len(*v))
	w.uint(&n)
	switch {
	case !w.reading:
		w.b = append(w.b, *v...)
	case n > uint64(len(w.b)):
		w.bad, w.b = true, nil
	default:
		*v, w.b = w.b[:n:n], w.b[n:]
	}
}

func (w *walk) text(v *string) {
	b := []byte(*v)
	w.bytes(&b)
	*v = string(b)
}

// names are in order, so that equal states are encoded in the same bytes.
func (w *walk) names(v *map[string]uint64) {
	n := uint64(len(*v))
	w.uint(&n)
	if !w.reading {
		for _, name := range slices.Sorted(maps.Keys(*v)) {
			since := (*v)[name]
			w.text(&name)
			w.uint(&since)
		}
		return
	}
	if n > uint64(len(w.b))/2 { // each is two bytes at least
		w.bad, w.b = true, nil
		return
	}
	if n == 0 {
		return
	}
	*v = make(map[string]uint64)
	for range n {
		var name string
		var since uint64
		w.text(&name)
		w.uint(&since)
		(*v)[name] = since
	}
	w.bad = w.bad || uint64(len(*v)) != n // one twice
}
