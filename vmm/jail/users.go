package jail

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Each jail that the host's root starts without shares of others' files has a user of its own, and a group of the same number, that no other
// running jail has: if the namespaces failed, it could still neither signal nor trace nor read another one.
//
// A user is claimed by a lock on one byte of a file, at the offset that is its number. The kernel ends the lock with the process that holds it,
// however that ends, so nothing is left to clean up, there is no daemon, and two can never claim the same. When this process is
// killed its jails are, at the same moment; where the search begins hangs on the jail's name, so that a user who has just
// become free is not the next to be taken.

// The host's user IDs for jails, unless the operator sets others: a range that systemd's
// registry of IDs (docs/UIDS-GIDS.md) leaves unused, above those of containers.
const (
	firstUser = 0x70000000
	users     = 0x0fff0000
)

// lowestUser and endUser bound what may be set: above system and ordinary users, and below the IDs that some programs take for negative numbers.
const (
	lowestUser = 1 << 16
	endUser    = 1 << 31
)

// Files of users. They are variables for tests.
var (
	// usersFile sets another range, as FIRST:COUNT.
	usersFile = "/etc/manis/users"
	// claimsFile is the file of the locks. It stays, and stays empty.
	claimsFile = "/run/manis-users"
	// subordinateFiles are the ranges that ordinary users have for their own user namespaces, as USER:FIRST:COUNT (subuid(5)).
	subordinateFiles = []string{"/etc/subuid", "/etc/subgid"}
)

// maxTries bounds the users that are tried.
const maxTries = 4096

// claim is a user that one jail has.
type claim struct {
	uid uint32
	// file holds the lock; nil: there could be none, and why says so.
	file *os.File
	why  string
}

func (c *claim) release() {
	if c != nil && c.file != nil {
		c.file.Close()
	}
}

// span is a range of IDs, without end.
type span struct{ first, end uint64 }

// claimUser claims a user for the jail with this name. On a host where no lock can be had, which /run on a read-only filesystem is, it
// is the one that the name leads to: two have the same with a probability of one in 10^8, and still separate namespaces.
func claimUser(name string) (*claim, error) {
	all, err := userRange()
	if err != nil {
		return nil, err
	}
	taken := subordinates()
	h := fnv.New64a()
	h.Write([]byte(name))
	n := all.end - all.first
	file, lockErr := os.OpenFile(claimsFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	at, passed := h.Sum64()%n, uint64(0)
	for range maxTries {
		if passed >= n {
			break
		}
		uid := all.first + at%n
		if s := within(taken, uid); s != nil {
			at, passed = at+s.end-uid, passed+s.end-uid
			continue
		}
		if lockErr != nil {
			return &claim{uid: uint32(uid), why: lockErr.Error()}, nil
		}
		err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(uid), Len: 1})
		switch {
		case err == nil:
			return &claim{uid: uint32(uid), file: file}, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			at, passed = at+1, passed+1
		default:
			lockErr = fmt.Errorf("lock %s: %w", claimsFile, err)
			file.Close()
		}
	}
	if lockErr == nil {
		file.Close()
	}
	return nil, fmt.Errorf("no user is free for the jail: those from %d to %d are taken by running machines or subordinate to users (%s sets others)",
		all.first, all.end-1, usersFile)
}

func within(spans []span, id uint64) *span {
	for i, s := range spans {
		if s.first <= id && id < s.end {
			return &spans[i]
		}
	}
	return nil
}

// userRange is what the operator has set, or the usual range.
func userRange() (span, error) {
	f, err := os.Open(usersFile)
	if errors.Is(err, os.ErrNotExist) {
		return span{firstUser, firstUser + users}, nil
	}
	if err != nil {
		return span{}, fmt.Errorf("read the range of users: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return span{}, fmt.Errorf("read the range of users: %s: %w", usersFile, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return span{}, fmt.Errorf("%s: others than root may change it: chown root and chmod go-w", usersFile)
	}
	b := make([]byte, 64)
	n, _ := f.Read(b)
	first, count, ok := strings.Cut(strings.TrimSpace(string(b[:n])), ":")
	a, err1 := strconv.ParseUint(first, 0, 32)
	c, err2 := strconv.ParseUint(count, 0, 32)
	switch {
	case !ok || err1 != nil || err2 != nil || c == 0:
		return span{}, fmt.Errorf("%s: want FIRST:COUNT, as in %d:%d", usersFile, firstUser, users)
	case a < lowestUser || a+c > endUser:
		return span{}, fmt.Errorf("%s: users from %d to %d: they must be between %d and %d", usersFile, a, a+c-1, lowestUser, endUser-1)
	}
	return span{a, a + c}, nil
}

// subordinates are the ranges that belong to users. Lines that say nothing, and files that are not there, are none.
func subordinates() []span {
	var all []span
	for _, path := range subordinateFiles {
		b, err := readBounded(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(b) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 {
				continue
			}
			first, err1 := strconv.ParseUint(f[1], 10, 32)
			count, err2 := strconv.ParseUint(f[2], 10, 32)
			if err1 == nil && err2 == nil && count > 0 {
				all = append(all, span{first, first + count})
			}
		}
	}
	return all
}
