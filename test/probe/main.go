// Probe runs inside a test's container and reports what a process there sees
// and may do: what a shell of busybox cannot say exactly. It is one static
// binary with a verb for each question; answers go to stdout, and a question that
// cannot be answered ends with status 1. It must not know Manis.
package main

import (
	"fmt"
	"os"
	"strconv"
)

var verbs = map[string]func(args []string) error{
	"tree":   tree,
	"dial":   dial,
	"serve":  serve,
	"lookup": lookup,
	"mapped": leaveMapped, "habits": habits,
	"hold":     hold,
	"fork":     fork,
	"writable": writable,
	"writefd":  writeFD,
	"ids":      ids,
	"secrets":  secrets,
	"watch":    watch,
	"keep":     keep,
}

func main() {
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: probe tree|dial|serve|lookup|habits|mapped|hold|fork|writable|writefd|ids|secrets|watch|keep ...")
		os.Exit(2)
	}
	if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// ids prints the real and the effective user.
func ids([]string) error {
	fmt.Println(os.Getuid(), os.Geteuid())
	return nil
}

// hold touches this many MiB of memory, says so, and keeps them until stdin ends.
func hold(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	kept := make([][]byte, mib)
	for i := range kept {
		kept[i] = make([]byte, 1<<20)
		for j := 0; j < len(kept[i]); j += 4096 {
			kept[i][j] = 1
		}
	}
	fmt.Println("holding", mib)
	os.Stdin.Read(make([]byte, 1))
	fmt.Println(len(kept))
	return nil
}

// fork starts children until the kernel refuses one, and says how many there were and
// why no more.
func fork([]string) error {
	var children []*os.Process
	defer func() {
		for _, c := range children {
			c.Kill()
			c.Wait()
		}
	}()
	for {
		c, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{})
		if err != nil {
			fmt.Printf("%d children, then: %v\n", len(children), err)
			return nil
		}
		children = append(children, c)
		if len(children) > 10_000 {
			return fmt.Errorf("%d children and no limit met", len(children))
		}
	}
}
