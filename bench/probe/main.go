// Command probe is what the benchmark runs inside containers: it reads files,
// floods streams and answers on the network, and measures what only the inside can.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: probe idle | out BYTES | in | serve PORT | echo PORT | read FILE | random FILE COUNT")
	}
	number := func(i int) (int64, error) {
		if len(args) <= i {
			return 0, fmt.Errorf("%s wants a number", args[0])
		}
		return strconv.ParseInt(args[i], 10, 64)
	}
	switch args[0] {
	case "idle":
		fmt.Println("ready")
		// A select without cases would be a deadlock to the runtime.
		for {
			time.Sleep(time.Hour)
		}
	case "out":
		n, err := number(1)
		if err != nil {
			return err
		}
		return flood(os.Stdout, n)
	case "in":
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{os.Stdin}, make([]byte, 256<<10))
		fmt.Println(n)
		return err
	case "serve":
		return serve(args[1])
	case "echo":
		return echo(args[1])
	case "read":
		return sequential(args[1])
	case "random":
		n, err := number(2)
		if err != nil {
			return err
		}
		return random(args[1], n)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func flood(w io.Writer, n int64) error {
	buf := make([]byte, 256<<10)
	for n > 0 {
		m, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

// Reading is how a file was read, as the host parses it.
type Reading struct {
	Bytes, Operations int64
	Seconds           float64
}

func report(r Reading, start time.Time) error {
	r.Seconds = time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

func sequential(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	start := time.Now()
	n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{f}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	return report(Reading{Bytes: n, Operations: 1}, start)
}

func random(name string, count int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	const block = 4096
	buf := make([]byte, block)
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for range count {
		if _, err := f.ReadAt(buf, r.Int64N(fi.Size()/block)*block); err != nil {
			return err
		}
	}
	return report(Reading{Bytes: count * block, Operations: count}, start)
}

// serve answers connections, each of which begins with 8 bytes: a number of bytes
// to send back, or 0 to count what comes until the end and answer with the count.
func serve(port string) error {
	return listen(port, func(c net.Conn) {
		if err := answer(c); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
		}
		c.Close()
	})
}

// listen says that it is ready and has handle take each connection, one after the other.
func listen(port string, handle func(net.Conn)) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		handle(c)
	}
}

func answer(c net.Conn) error {
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(head[:]); n > 0 {
		return flood(c, int64(n))
	}
	// Without the connection's own ReadFrom: the bytes shall arrive in this process.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(head[:], uint64(n))
	_, err = c.Write(head[:])
	return err
}

// echo sends back what comes, on any number of connections.
func echo(port string) error {
	return listen(port, func(c net.Conn) {
		go func() {
			defer c.Close()
			io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64<<10))
		}()
	})
}
