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
			o := newOrder(5, 2, 1)
			for i, sequence := range test.sequences {
				var want error
				if test.want != nil && i == test.at {
					want = test.want
				}
				if err := o.take(message{source: 6, sequence: sequence}); !errors.Is(err, want) {
					t.Fatalf("message %d of %v: got error %v, want %v", i, test.sequences, err, want)
				}
			}
		})
	}
}

// What is one source's does not count for another's, and what is for others is found.
func TestOrderTellsSourcesApart(t *testing.T) {
	o := newOrder(5, 2, 1)
	for _, m := range []message{{source: 5, sequence: 1}, {source: 6, sequence: 1}, {source: 5, sequence: 2}} {
		if err := o.take(m); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
	}
	for _, source := range []uint32{0, 4, 7, 1 << 31} {
		if err := o.take(message{source: source, sequence: 1}); !errors.Is(err, errForeign) {
			t.Errorf("a message of source %d: error %v", source, err)
		}
	}
}

func TestMessageComesBackWhole(t *testing.T) {
	for _, want := range []message{{}, {1, 2, 3, 1_795_000_000_123_456_789}, {1 << 31, 1 << 63, 255, 1}} {
		b := want.appendTo(nil)
		if len(b) != messageSize {
			t.Fatalf("a message is %d bytes, want %d", len(b), messageSize)
		}
		if got, err := parseMessage(b); err != nil || got != want {
			t.Fatalf("%+v came back as %+v, error %v", want, got, err)
		}
	}
}

// A changed byte is found wherever it is, unless it is a digit for a digit: that one the
// sequence finds, or it is the stamp's.
func TestMessageFindsAChangedByte(t *testing.T) {
	whole := message{sequence: 7, stamp: 8}.appendTo(nil)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x80
		if _, err := parseMessage(b); !errors.Is(err, errNotOurs) {
			t.Errorf("byte %d was changed, and the error is %v", i, err)
		}
	}
	for _, n := range []int{0, 1, messageSize - 1} {
		if _, err := parseMessage(whole[:n]); !errors.Is(err, errNotOurs) {
			t.Errorf("the message was cut to %d bytes, and the error is %v", n, err)
		}
	}
}
