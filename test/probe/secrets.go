package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// secrets prints what of the kernel's secrets can be seen in the first packets of connections from
// fixed ports: for each, the initial sequence number and the timestamp without the clocks that are in
// them. It needs CAP_NET_RAW.
func secrets([]string) error {
	const ipv4 = 0x0800
	order := uint16(ipv4>>8 | ipv4&0xff<<8)
	heard, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(order))
	if err != nil {
		return fmt.Errorf("hear packets: %w", err)
	}
	if err := unix.SetsockoptTimeval(heard, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	for port := 40001; port <= 40004; port++ {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(s, &unix.SockaddrInet4{Port: port, Addr: to.Addr}); err != nil {
			return err
		}
		var monotonic unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic); err != nil {
			return err
		}
		now := time.Now()
		if err := unix.Connect(s, to); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect: %v, not refused", err)
		}
		unix.Close(s)
		sequence, stamp, err := awaitSYN(heard, port)
		if err != nil {
			return err
		}
		// secure_tcp_seq and secure_tcp_ts_off of Linux: a keyed hash plus a clock.
		fmt.Println(sequence-uint32(now.UnixNano()>>6), stamp-uint32(monotonic.Nano()/1e6))
	}
	return nil
}

// awaitSYN returns the sequence number and the timestamp of the first packet from port.
func awaitSYN(heard, port int) (sequence, stamp uint32, err error) {
	packet := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(heard, packet, 0)
		if err != nil {
			return 0, 0, fmt.Errorf("hear a packet: %w", err)
		}
		b := packet[:n]
		if n < 40 || b[9] != unix.IPPROTO_TCP {
			continue
		}
		tcp := b[int(b[0]&15)*4:]
		if len(tcp) < 20 || int(binary.BigEndian.Uint16(tcp)) != port || tcp[13]&0x12 != 2 {
			continue
		}
		options := tcp[20:min(len(tcp), int(tcp[12]>>4)*4)]
		for len(options) >= 2 {
			switch kind, length := options[0], int(options[1]); {
			case kind == 1: // padding
				options = options[1:]
			case kind == 8 && length == 10 && len(options) >= 10:
				return binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(options[2:]), nil
			case kind == 0 || length < 2 || length > len(options):
				return 0, 0, errors.New("a first packet without a timestamp")
			default:
				options = options[length:]
			}
		}
		return 0, 0, errors.New("a first packet without a timestamp")
	}
}
