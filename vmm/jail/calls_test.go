package jail_test

import (
	"slices"
	"strings"
	"testing"

	"manis/vmm/jail"
)

// minimum is what a list cannot be without.
const minimum = "group the jail's own\nexecve\nseccomp\nwrite\nexit_group\n"

func TestParseCalls(t *testing.T) {
	c, err := jail.ParseCalls("# a list\n" + minimum + "group more # and more\n read\nioctl arg1=0x5401\nioctl arg1&0xff00=0xae00 # KVM\n" +
		"clone arg0&0x7e030f00=0x10f00\n\nrefuse ENOSYS clone3\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"execve", "seccomp", "write", "exit_group", "read", "ioctl", "clone"}; !slices.Equal(c.Names(), want) {
		t.Errorf("it allows %v, want %v", c.Names(), want)
	}
}

func TestParseCallsErrors(t *testing.T) {
	for text, says := range map[string]string{
		"read\n":                                                 "before the first group",
		minimum + "group\n":                                      "line 6: a group without a reason",
		minimum + "raed\n":                                       `line 6: there is no system call "raed"`,
		minimum + "ptrace\n":                                     "ptrace is forbidden",
		minimum + "clone3\n":                                     "clone3 is forbidden",
		minimum + "socket arg0=1\n":                              "socket is forbidden",
		minimum + "clone\n":                                      "restricted to threads",
		minimum + "clone arg0&0x10000=0x10000\n":                 "restricted to threads",
		minimum + "clone arg1&0x7e030f00=0x10f00\n":              "restricted to threads",
		minimum + "read arg6=1\n":                                `"arg6=1" is no condition`,
		minimum + "read arg1\n":                                  `"arg1" is no condition`,
		minimum + "read arg1&0xf=0x10\n":                         "is no condition",
		minimum + "read arg1=0x100000000\n":                      "is no condition",
		minimum + "read arg1=1 arg1=2\n":                         "second condition",
		minimum + "read\nread\n":                                 "line 7: read is allowed already",
		minimum + "read\nread arg1=1\n":                          "allowed already",
		minimum + "read arg1=1\nread\n":                          "allowed already",
		minimum + "refuse EIO read\n":                            "want refuse",
		minimum + "refuse EPERM raed\n":                          "want refuse",
		strings.Replace(minimum, "execve", "", 1):                "without execve",
		strings.Replace(minimum, "seccomp", "seccomp arg0=1", 1): "without seccomp",
	} {
		if _, err := jail.ParseCalls(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want %q in it", text, err, says)
		}
	}
}
