package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestOrderFindsEveryFault(t *testing.T) {
	for _, test := range []struct {
		name      string
		sequences []uint64
		want      error
		at        int // index of the message that must be refused
	}{
		{"every message once and in order", []uint64{1, 2, 3, 4}, nil, 0},
		{"lost", []uint64{1, 2, 4}, errGap, 2},
		{"first lost", []uint64{2}, errGap, 0},
		{"repeated", []uint64{1, 2, 2}, errAgain, 2},
		{"an early one repeated", []uint64{1, 2, 3, 1}, errAgain, 3},
		{"reordered", []uint64{1, 3, 2}, errGap, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := order{due: 1}
			for i, sequence := range test.sequences {
				var want error
				if test.want != nil && i == test.at {
					want = test.want
				}
				if err := o.take(sequence); !errors.Is(err, want) {
					t.Fatalf("message %d of %v: got error %v, want %v", i, test.sequences, err, want)
				}
			}
		})
	}
}

func TestMessageComesBackWhole(t *testing.T) {
	for _, sequence := range []uint64{0, 1, 1 << 40, ^uint64(0)} {
		b := appendMessage(nil, sequence, 1_795_000_000_123_456_789)
		if len(b) != messageSize {
			t.Fatalf("a message is %d bytes, want %d", len(b), messageSize)
		}
		got, stamp, err := parseMessage(b)
		if err != nil || got != sequence || stamp != 1_795_000_000_123_456_789 {
			t.Fatalf("message %d came back as %d, stamp %d, error %v", sequence, got, stamp, err)
		}
	}
}

// A changed byte is found wherever it is, unless it is a digit for a digit: that one the
// sequence finds, or it is the stamp's.
func TestMessageFindsAChangedByte(t *testing.T) {
	whole := appendMessage(nil, 7, 8)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x80
		if _, _, err := parseMessage(b); !errors.Is(err, errNotOurs) {
			t.Errorf("byte %d was changed, and the error is %v", i, err)
		}
	}
	for _, n := range []int{0, 1, messageSize - 1} {
		if _, _, err := parseMessage(whole[:n]); !errors.Is(err, errNotOurs) {
			t.Errorf("the message was cut to %d bytes, and the error is %v", n, err)
		}
	}
}
