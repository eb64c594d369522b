// Command soak starts and ends many containers and fails if anything is left of them:
//
//	go run ./test/soak/cmd -n 1000
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"manis/test/soak"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o := soak.Options{Log: os.Stderr}
	flag.IntVar(&o.Cycles, "n", 1000, "`number` of containers")
	flag.IntVar(&o.Waiting, "waiting", 1, "`number` of machines that manisd keeps waiting, 0 for no manisd")
	flag.StringVar(&o.Binary, "manis", "bin/manis", "`path` of the binary, beside which manisd is")
	flag.Parse()
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	fmt.Println("soak: nothing is left")
}

func run(ctx context.Context, o soak.Options) (err error) {
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return err
	}
	if flag.NArg() > 0 || o.Cycles < 1 || o.Waiting < 0 {
		flag.Usage()
		return fmt.Errorf("wrong arguments")
	}
	return soak.Run(ctx, o)
}
