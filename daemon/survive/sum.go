package survive

import (
	"errors"
	"hash/crc32"
)

// A record is memory that anything can have happened to: a defect of this program, of the kernel, of the machine. A wrong place would have wrong bytes
// sent to a client, so every place has a sum, of itself and of what of the record it is about. It is made with every Stand, after every write to a
// client, and costs a few nanoseconds of the microseconds that the write takes.

// stored is a Place in the table. 48 bytes.
type stored struct {
	cursor   uint64
	base     uint64
	in       uint64
	received uint64
	over     int32 // Out - Base: less than nothing before the answer is out, and at most a message
	extra    uint32
	marks    Marks
	at       uint16
	sum      uint32
}

// holds are the values of Record.which, for each place. They differ in half of their bits, so that no accident makes an older place hold, and have
// writing in common.
var holds = [2]uint32{0x3c96a5f0, 0xc3695a0d}

var errSum = errors.New("the record is damaged: its sum is another one")

// place reads a place.
func (p *stored) place() Place {
	return Place{Cursor: p.cursor, Base: p.base, Extra: p.extra, Marks: p.marks, At: p.at, Out: p.base + uint64(int64(p.over)), In: p.in, Received: p.received}
}

// put writes a place, and its sum.
func (r *Record) put(which uint32, p *Place) {
	s := &r.places[which]
	*s = stored{
		cursor: p.Cursor, base: p.Base, in: p.In, received: p.Received, over: int32(p.Out - p.Base), extra: p.Extra, marks: p.Marks, at: p.At,
	}
	s.sum = r.sum(which, s)
}

// sound tells whether the place that holds is as it was put there.
func (r *Record) sound() bool {
	w := r.which.Load()
	p := &r.places[w&1]
	return w&^writing == holds[w&1] && p.sum == r.sum(w&1, p)
}

// sum is a multilinear hash of all words but the sum: each is multiplied with an odd number of its own, so that a change of one of them changes the
// sum, and the multiplications do not wait for each other. The numbers are those of a random generator.
func (r *Record) sum(which uint32, p *stored) uint32 {
	h := p.cursor*0x9fb21c651e98df25 + p.base*0xd6e8feb86659fd93 + p.in*0xa0761d6478bd642f + p.received*0xe7037ed1a0b428db +
		(uint64(uint32(p.over))<<32|uint64(p.extra))*0x8ebc6af09c88c6e3 + (uint64(p.marks)<<48|uint64(p.at)<<32|uint64(which))*0x589965cc75374cc3 +
		r.cookie*0x1d8e4e27c47d124f + (uint64(r.gen)<<32|uint64(r.channel))*0xeb44accab455d165 + uint64(r.kind)*0x9c6e6877736c46e3
	if p.extra > 0 {
		h += uint64(crc32.ChecksumIEEE(r.extra[:min(int(p.extra), len(r.extra))])) * 0xc2b2ae3d27d4eb4f
	}
	return uint32(h>>32) ^ uint32(h)
}
