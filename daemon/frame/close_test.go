package frame

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func TestAppendClose(t *testing.T) {
	for _, tc := range []struct {
		name   string
		code   uint16
		reason string
		want   string // payload
	}{
		{"code and reason", CloseServiceRestart, "back in a moment", "\x03\xF4back in a moment"},
		{"no reason", CloseNormal, "", "\x03\xE8"},
		{"no status", CloseNoStatus, "not sent", ""},
		{"zero", 0, "not sent", ""},
		{"must not be sent", CloseAbnormal, "not sent", ""},
		{"private", 4999, "x", "\x13\x87x"},
		{"longest reason", CloseTryAgainLater, strings.Repeat("r", 123), "\x03\xF5" + strings.Repeat("r", 123)},
		{"one byte too long", CloseTryAgainLater, strings.Repeat("r", 124), "\x03\xF5" + strings.Repeat("r", 123)},
		{"rune across the end", CloseNormal, strings.Repeat("r", 122) + "ü", "\x03\xE8" + strings.Repeat("r", 122)},
		{"rune up to the end", CloseNormal, strings.Repeat("r", 121) + "üx", "\x03\xE8" + strings.Repeat("r", 121) + "ü"},
		{"four bytes across the end", CloseNormal, strings.Repeat("r", 120) + "🌍", "\x03\xE8" + strings.Repeat("r", 120)},
		{"not UTF-8", CloseNormal, "good\xFFbad", "\x03\xE8good"},
		{"replacement character", CloseNormal, "a\uFFFDb", "\x03\xE8a\uFFFDb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := AppendClose([]byte{'.'}, tc.code, tc.reason)
			want := append([]byte{'.', 0x88, byte(len(tc.want))}, tc.want...)
			if !bytes.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// What a client sent can be sent back to it as the answer (RFC 6455, 5.5.1).
func TestCloseAnswer(t *testing.T) {
	for code := range 1 << 16 {
		sent := binary.BigEndian.AppendUint16(nil, uint16(code))
		got, reason, err := ParseClose(append(sent, "why"...))
		valid := code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006 || code >= 3000 && code < 5000
		switch {
		case valid != (err == nil):
			t.Errorf("code %d: error %v", code, err)
		case valid && (got != uint16(code) || reason != "why"):
			t.Errorf("code %d: got %d, %q", code, got, reason)
		case !valid && err.Code != CloseProtocolError:
			t.Errorf("code %d fails with %d: want 1002", code, err.Code)
		}
	}
	code, reason, err := ParseClose(nil)
	if code != CloseNoStatus || reason != "" || err != nil {
		t.Errorf("empty payload: %d, %q, %v", code, reason, err)
	}
	if answer := AppendClose(nil, code, reason); !bytes.Equal(answer, octets("88 00")) {
		t.Errorf("answer to an empty close is % x", answer)
	}
	if _, _, err := ParseClose([]byte{3}); err == nil || err.Code != CloseProtocolError {
		t.Errorf("payload of one byte: %v, want 1002", err)
	}
	if _, _, err := ParseClose([]byte("\x03\xE8\xC3")); err == nil || err.Code != CloseInvalidData {
		t.Errorf("reason that is not UTF-8: %v, want 1007", err)
	}
}
