package frame

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Close codes (RFC 6455, 7.4.1, and the WebSocket Close Code Number Registry of IANA). 3000 to 3999
// are for libraries and frameworks, 4000 to 4999 for private use.
const (
	CloseNormal             = 1000
	CloseGoingAway          = 1001
	CloseProtocolError      = 1002
	CloseUnsupported        = 1003
	CloseNoStatus           = 1005 // never on the wire: a close frame without a payload
	CloseAbnormal           = 1006 // never on the wire: the connection ended without a close frame
	CloseInvalidData        = 1007
	ClosePolicyViolation    = 1008
	CloseTooBig             = 1009
	CloseMandatoryExtension = 1010
	CloseInternalError      = 1011
	CloseServiceRestart     = 1012
	CloseTryAgainLater      = 1013
	CloseBadGateway         = 1014
)

// maxReason is what a close frame has left for the reason after the two bytes of the code.
const maxReason = maxControl - 2

// Error says how to close the connection of a client that broke the protocol: both fields are ready
// for AppendClose. Errors are shared and must not be changed.
type Error struct {
	Code   uint16 // 1002, 1007 or 1009
	Reason string // one line of at most 123 bytes, for the author of the client
}

// Error returns the reason and the code, for logs.
func (e *Error) Error() string { return fmt.Sprintf("%s (close code %d)", e.Reason, e.Code) }

var (
	errCloseSize   = &Error{CloseProtocolError, "close frame with a payload of 1 byte: send none, or a 2-byte code (RFC 6455 5.5.1)"}
	errCloseCode   = &Error{CloseProtocolError, "close code that must not be sent: use 1000 or 3000 to 4999 (RFC 6455 7.4)"}
	errCloseReason = &Error{CloseInvalidData, "close reason is not UTF-8 (RFC 6455 5.5.1)"}
)

// sendable tells the codes that may be in a close frame: those the registry assigns, without 1004
// (reserved) and 1005, 1006 and 1015 (for use inside of programs, RFC 6455, 7.4.1), and the two
// ranges of 7.4.2.
func sendable(code uint16) bool {
	return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
}

// AppendClose appends to dst a whole close frame, which every client can parse: the reason is cut
// at 123 bytes, at the end of a rune, or where it stops being UTF-8. CloseNoStatus, and any code
// that must not be sent, give a frame without code and reason; so what ParseClose returned can be
// sent back as the answer.
func AppendClose(dst []byte, code uint16, reason string) []byte {
	if !sendable(code) {
		return AppendHeader(dst, Close, 0)
	}
	reason = reason[:reasonSize(reason)]
	dst = AppendHeader(dst, Close, 2+len(reason))
	dst = binary.BigEndian.AppendUint16(dst, code)
	return append(dst, reason...)
}

// reasonSize returns how many bytes of the reason are whole runes and fit into a close frame.
func reasonSize(reason string) int {
	size := 0
	for size < len(reason) {
		r, width := utf8.DecodeRuneInString(reason[size:])
		if r == utf8.RuneError && width == 1 || size+width > maxReason {
			break
		}
		size += width
	}
	return size
}

// ParseClose returns the code and the reason of a close frame's unmasked payload. An empty payload
// is CloseNoStatus. The error is 1002 for a payload of one byte and for a code that must not be
// sent, and 1007 for a reason that is not UTF-8. It is nil for every payload that Next returned,
// which has checked it.
func ParseClose(payload []byte) (code uint16, reason string, err *Error) {
	if err := checkClose(payload); err != nil {
		return 0, "", err
	}
	if len(payload) == 0 {
		return CloseNoStatus, "", nil
	}
	return binary.BigEndian.Uint16(payload), string(payload[2:]), nil
}

// checkClose is apart from ParseClose because it makes no string.
func checkClose(payload []byte) *Error {
	switch {
	case len(payload) == 0:
		return nil
	case len(payload) == 1:
		return errCloseSize
	case !sendable(binary.BigEndian.Uint16(payload)):
		return errCloseCode
	case !utf8.Valid(payload[2:]):
		return errCloseReason
	}
	return nil
}
