// Command manis runs containers, each in a virtual machine of its own.
package main

import (
	"os"

	"manis/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
