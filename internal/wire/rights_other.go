//go:build !unix

package wire

import (
	"errors"
	"os"
)

const controlSpace = 0

func encodeRights(fds []int) ([]byte, error) {
	if len(fds) == 0 {
		return nil, nil
	}
	return nil, errors.ErrUnsupported
}

func decodeRights([]byte, int) ([]*os.File, bool, error) {
	return nil, false, errors.ErrUnsupported
}
