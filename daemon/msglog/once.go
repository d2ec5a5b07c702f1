package msglog

import (
	"crypto/sha256"
	"errors"
)

// MaxID is the longest id that a publisher can give a message, in bytes.
const MaxID = 128

var errID = errors.New("invalid id: an id has at most 128 bytes")

// onceHash stands for an id in the entry of its message and in Log.once; zero is no id.
//
// It is cut to what has room in an entry. With n messages with ids in the log, the odds that a new id is taken for one
// of theirs are n in 2^96: with a million, one in 10^22. Two ids with the same hash can be found on purpose with some
// 2^48 steps, by one who may publish anyway.
type onceHash [12]byte

// hashID makes the hash of a channel and an id. The name's length is in it, so that no two pairs are the same bytes.
func hashID(channel, id []byte) (h onceHash) {
	var room [1 + MaxName + MaxID]byte // so that nothing is allocated
	pair := append(append(append(room[:0], byte(len(channel))), channel...), id...)
	sum := sha256.Sum256(pair)
	copy(h[:], sum[:])
	if h == (onceHash{}) {
		h[0] = 1
	}
	return h
}

// hasLocked tells whether the log has a message with the id.
func (l *Log) hasLocked(h onceHash) bool {
	if h == (onceHash{}) {
		return false
	}
	_, ok := l.once[h]
	return ok
}

// rememberLocked notes the id of a message that the log is given.
func (l *Log) rememberLocked(h onceHash) {
	if h == (onceHash{}) {
		return
	}
	if l.once == nil {
		l.once = make(map[onceHash]struct{})
	}
	l.once[h] = struct{}{}
}

// forgetIDLocked drops the id of a message that the log gives up. A map keeps its memory when it shrinks: the last one
// lets go of it.
func (l *Log) forgetIDLocked(h onceHash) {
	if h == (onceHash{}) {
		return
	}
	if delete(l.once, h); len(l.once) == 0 {
		l.once = nil
	}
}
