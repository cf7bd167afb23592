package load

import (
	"errors"
	"fmt"
)

// Header blocks of HTTP/2, as far as a client needs them that looks at nothing
// but the status. It allows the server no dynamic table, so that each block
// says all by itself.

// appendField appends a field as a literal that is not to be indexed (RFC
// 7541, section 6.2.2), without Huffman coding.
func appendField(b []byte, name, value string) []byte {
	b = append(b, 0)
	b = appendText(b, name)
	return appendText(b, value)
}

func appendText(b []byte, text string) []byte {
	const prefix = 1<<7 - 1
	n := len(text)
	if n < prefix {
		return append(append(b, byte(n)), text...)
	}
	b = append(b, prefix)
	for n -= prefix; n >= 1<<7; n >>= 7 {
		b = append(b, byte(n)|1<<7)
	}
	return append(append(b, byte(n)), text...)
}

// errStatus is a block without a status as its first field, or an unusual one.
var errStatus = errors.New("header block of HTTP/2 without a readable :status")

// statuses are those of the static table (RFC 7541, appendix A), from index 8.
var statuses = [...]int{200, 204, 206, 304, 400, 404, 500}

const firstStatus = 8

// status returns the first field of a response's header block.
func status(block []byte) (int, error) {
	for len(block) > 0 && block[0]>>5 == 0b001 { // an update of the table's size
		size := block[0] & 0x1F
		if block = block[1:]; size != 0 {
			return 0, fmt.Errorf("%w: a dynamic table of size %d", errStatus, size)
		}
	}
	if len(block) == 0 {
		return 0, errStatus
	}
	first := int(block[0])
	switch {
	case first&0x80 != 0:
		first &= 0x7F
	case first&0x40 != 0:
		first &= 0x3F
	default:
		first &= 0x0F
	}
	i := first - firstStatus
	if i < 0 || i >= len(statuses) {
		return 0, errStatus
	}
	if block[0]&0x80 != 0 {
		return statuses[i], nil
	}
	return literalStatus(block[1:])
}

// literalStatus reads three digits.
func literalStatus(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, errStatus
	}
	huffman, n := b[0]&0x80 != 0, int(b[0]&0x7F)
	if b = b[1:]; n > len(b) {
		return 0, errStatus
	}
	text := string(b[:n])
	if huffman {
		text = huffmanDigits(b[:n])
	}
	if len(text) != 3 {
		return 0, errStatus
	}
	code := 0
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			return 0, errStatus
		}
		code = 10*code + int(digit-'0')
	}
	return code, nil
}

// huffmanDigits decodes digits (RFC 7541, appendix B): 0, 1 and 2 have the
// codes 00000 to 00010, 3 to 9 have 011001 to 011111; the rest is padded with
// ones.
func huffmanDigits(b []byte) (text string) {
	var bits uint64
	n := 8 * len(b)
	if n > 64 {
		return ""
	}
	for _, c := range b {
		bits = bits<<8 | uint64(c)
	}
	take := func(k int) int { return int(bits >> (n - k) & (1<<k - 1)) }
	for n >= 5 {
		switch five := take(5); {
		case five <= 2:
			text += string(rune('0' + five))
			n -= 5
		case n >= 6 && take(6) >= 0b011001 && take(6) <= 0b011111:
			text += string(rune('3' + take(6) - 0b011001))
			n -= 6
		case take(n) == 1<<n-1 && n < 8:
			return text
		default:
			return ""
		}
	}
	return text
}
