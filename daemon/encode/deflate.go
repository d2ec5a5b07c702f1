package encode

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"

	"wscast/daemon/frame"
)

// permessage-deflate (RFC 7692) without context takeover: a message is compressed by itself, so that it is the same for every client, and a
// process that comes later needs nothing to go on from.

// threshold is the payload in bytes from which on compressing is tried. It is not configured: a message that a client has half of must be made
// once more just as it was.
const threshold = 256

// tail is what a compressed message ends with, and what is not sent (RFC 7692 section 7.2.1). final is an empty last block, so that a
// reader finds an end (section 7.2.2).
const (
	tail  = "\x00\x00\xff\xff"
	final = "\x01\x00\x00\xff\xff"
)

// deflater is what there is of a compressor, used again and again.
type deflater struct {
	writer *flate.Writer
	out    bytes.Buffer
}

// deflate replaces the frame that begins at from by one with a compressed payload, if that is smaller.
func (n *Encoder) deflate(dst []byte, from int) []byte {
	op, payload, _ := frame.Payload(dst[from:])
	if len(payload) < threshold {
		return dst
	}
	if n.deflater == nil {
		w, _ := flate.NewWriter(nil, flate.BestSpeed) // fails for a bad level only
		n.deflater = &deflater{writer: w}
	}
	d := n.deflater
	d.out.Reset()
	d.writer.Reset(&d.out)
	_, _ = d.writer.Write(payload) // a bytes.Buffer takes everything
	_ = d.writer.Flush()
	small := bytes.TrimSuffix(d.out.Bytes(), []byte(tail))
	if len(small) >= len(payload) {
		return dst
	}
	dst = frame.AppendHeader(dst[:from], op, len(small))
	frame.SetDeflated(dst[from:])
	return append(dst, small...)
}

// Errors of Inflate.
var (
	ErrInflate    = errors.New("not compressed as RFC 7692 says")
	ErrInflateBig = errors.New("too large when it is uncompressed")
)

// Inflate appends the payload of a compressed message to dst as it was, at most limit bytes: a small message can be made to become a very
// large one.
func Inflate(dst, payload []byte, limit int) ([]byte, error) {
	r := flate.NewReader(io.MultiReader(bytes.NewReader(payload), bytes.NewReader([]byte(tail+final))))
	b := bytes.NewBuffer(dst)
	n, err := io.Copy(b, io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return dst, ErrInflate
	case n > int64(limit):
		return dst, ErrInflateBig
	}
	return b.Bytes(), nil
}
