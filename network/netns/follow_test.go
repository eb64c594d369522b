package netns

import (
	"context"
	"strings"
	"testing"
	"time"
)

// Interfaces that come and go are followed, and the others go on; what cannot be had is left alone.
func TestFollow(t *testing.T) {
	outside, box, guest := newSpace(t), newSpace(t), newSpace(t)
	taken := take(t, box)
	follow := func(want string) Change {
		t.Helper()
		c, changed, err := taken.Follow()
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for _, i := range c.Added {
			said = append(said, "+"+i.Name)
		}
		for _, i := range c.Removed {
			said = append(said, "-"+i.Name)
		}
		if changed && said == nil {
			said = append(said, "changed")
		}
		if got := strings.Join(said, " "); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
		return c
	}
	follow("")
	outside.join("up0", box, "eth0")
	outside.ip(outsideLines)
	follow("") // it is down and has no address yet
	box.ip(boxLines)
	c := follow("+eth0")
	if !c.Added[0].Plugged || !taken.Guest.Interfaces[0].Plugged {
		t.Error("the machine has begun without a card: this one is plugged in")
	}
	connect(t, guest, &taken.Interfaces[0])
	guest.ip("addr add 10.88.0.7/16 dev eth0")
	exchange(t, outside, guest, "10.88.0.7:9")
	follow("")

	outside.join("up1", box, "eth1")
	outside.ip("addr add 10.89.0.1/24 dev up1\nlink set up1 up")
	box.ip("addr add 10.89.0.7/24 dev eth1\nlink set eth1 up")
	follow("+eth1")
	exchange(t, outside, guest, "10.88.0.7:10")
	box.ip("addr add 10.89.1.7/24 dev eth1")
	follow("changed")
	if n := len(taken.Guest.Interfaces[1].Addresses); n < 2 {
		t.Errorf("%d addresses", n)
	}
	outside.ip("link del up1")
	follow("-eth1")
	exchange(t, outside, guest, "10.88.0.7:11")

	before := box.run("tc", "qdisc")
	outside.join("up2", box, "eth2")
	box.ip("addr add 10.90.0.7/24 dev eth2\nlink set eth2 up")
	c = follow("+eth2")
	if err := taken.Refuse(c.Added[0]); err != nil {
		t.Fatal(err)
	}
	if out := box.run("tc", "qdisc"); strings.Count(out, "ingress") != strings.Count(before, "ingress") {
		t.Errorf("after it was refused:\n%s", out)
	}
	follow("changed")
	follow("")
	if len(taken.Interfaces) != 1 || len(taken.Guest.Interfaces) != 1 {
		t.Errorf("%+v, %v", taken.Interfaces, taken.Guest)
	}
}

// Whoever watches hears of every change.
func TestWatch(t *testing.T) {
	outside, box := newSpace(t), newSpace(t)
	taken := take(t, box)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan bool, 100), make(chan error, 1)
	go func() { ended <- taken.Watch(ctx, func() { heard <- true }) }()
	hears := func(what string) {
		t.Helper()
		select {
		case <-heard:
		case <-time.After(patience):
			t.Errorf("%s: not heard of", what)
		}
	}
	// It may not listen yet.
	for begun := false; !begun; {
		box.ip("link set lo down\nlink set lo up")
		select {
		case <-heard:
			begun = true
		case <-time.After(patience / 100):
		case err := <-ended:
			t.Fatal(err)
		}
	}
	outside.join("up0", box, "eth0")
	hears("an interface")
	for _, line := range []string{"addr add 10.0.0.1/24 dev eth0", "link set eth0 up", "route add 10.1.0.0/16 via 10.0.0.2", "link del eth0"} {
		box.ip(line)
		hears(line)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
