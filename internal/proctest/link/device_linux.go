package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

const (
	deviceName = "link0"

	// queue is how many packets a device keeps for a pump that is slow. The
	// kernel's own 500 are less than one burst of many clients, and what is
	// dropped comes again only 200 ms later.
	queue = 10_000

	// mtu is that of large frames: fewer packets to carry for as many bytes.
	mtu = 9000
)

// request is the kernel's struct ifreq: the name of a device, and a union.
type request struct {
	name  [syscall.IFNAMSIZ]byte
	value [24]byte
}

func newRequest(device string, value []byte) *request {
	r := new(request)
	copy(r.name[:], device)
	copy(r.value[:], value)
	return r
}

// newDevice makes a device in the namespace of the calling thread, and gives
// it an address. See tun(4) and netdevice(7). The device goes when it is closed.
func newDevice(addr netip.Addr) (*os.File, error) {
	// Not by os.OpenFile: the poller takes it only when it is a device.
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	flags := native(syscall.IFF_TUN | syscall.IFF_NO_PI)
	if err := ioctl(fd, syscall.TUNSETIFF, newRequest(deviceName, flags)); err != nil {
		_ = syscall.Close(fd) // it is not even a device
		return nil, fmt.Errorf("make a device: %w", err)
	}
	device := os.NewFile(uintptr(fd), deviceName)
	if err := configure(addr); err != nil {
		_ = device.Close() // the reason counts
		return nil, fmt.Errorf("configure the device: %w", err)
	}
	return device, nil
}

func configure(addr netip.Addr) error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	for _, step := range []struct {
		op     uintptr
		device string
		value  []byte
	}{
		{syscall.SIOCSIFFLAGS, "lo", native(syscall.IFF_UP)},
		{syscall.SIOCSIFADDR, deviceName, sockaddr(addr)},
		{syscall.SIOCSIFNETMASK, deviceName, sockaddr(netmask)},
		{syscall.SIOCSIFMTU, deviceName, binary.NativeEndian.AppendUint32(nil, mtu)},
		{syscall.SIOCSIFTXQLEN, deviceName, binary.NativeEndian.AppendUint32(nil, queue)},
		{syscall.SIOCSIFFLAGS, deviceName, native(syscall.IFF_UP)},
	} {
		if err := ioctl(socket, step.op, newRequest(step.device, step.value)); err != nil {
			return err
		}
	}
	return nil
}

// native is a short in the union of a request.
func native(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }

// sockaddr is the kernel's struct sockaddr_in, without a port.
func sockaddr(a netip.Addr) []byte {
	return append(append(native(syscall.AF_INET), 0, 0), a.AsSlice()...)
}

func ioctl(fd int, op uintptr, r *request) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), op, uintptr(unsafe.Pointer(r))); errno != 0 {
		return errno
	}
	return nil
}
