package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// patience bounds a connection that nobody answers.
const patience = 5 * time.Second

// dial sends a line to each tcp or udp address and prints what comes back.
// Arguments are network/address: tcp/192.0.2.1:80. One line for each says ok or
// failed; status 1 if one failed.
func dial(args []string) error {
	var errs []error
	for _, a := range args {
		network, address, _ := strings.Cut(a, "/")
		answer, err := ask(network, address)
		if err != nil {
			fmt.Printf("failed %s: %v\n", a, err)
			errs = append(errs, err)
			continue
		}
		fmt.Printf("ok %s: %s\n", a, answer)
	}
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d failed", len(errs), len(args))
	}
	return nil
}

func ask(network, address string) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// serve answers lines at tcp and udp addresses with the line and the client's address
// until it is told to end. A datagram is answered whole.
func serve(args []string) error {
	for _, a := range args {
		network, address, _ := strings.Cut(a, "/")
		switch network {
		case "tcp":
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			go serveTCP(l)
		case "udp":
			c, err := net.ListenPacket("udp", address)
			if err != nil {
				return err
			}
			go serveUDP(c)
		default:
			return fmt.Errorf("%q is neither tcp/ADDRESS nor udp/ADDRESS", a)
		}
	}
	fmt.Println("serving")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	return nil
}

func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 64<<10)
			n, err := c.Read(buf)
			if err == nil {
				fmt.Fprintf(c, "%s from %s\n", bytes.TrimSpace(buf[:n]), c.RemoteAddr())
			}
		}()
	}
}

func serveUDP(c net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(fmt.Appendf(nil, "%s from %s\n", bytes.TrimSpace(buf[:n]), from), from)
	}
}

// lookup prints the addresses, and the text records, of names.
func lookup(names []string) error {
	var errs []error
	for _, name := range names {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		text, _ := net.DefaultResolver.LookupTXT(ctx, name)
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Println(name, addrs, text)
	}
	return errors.Join(errs...)
}
