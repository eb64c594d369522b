package jail

// PretendJailed makes Verify look at a process that was started open.
func (p *Process) PretendJailed() { p.open = false }

// BeforeMounts has f be called when Start has looked at all paths and has mounted nothing, until what it returns is called.
func BeforeMounts(f func()) (back func()) {
	beforeMounts = f
	return func() { beforeMounts = nil }
}

// UserFiles has users be claimed by other files, until what it returns is called.
func UserFiles(users, claims string, subordinate ...string) (back func()) {
	u, c, s := usersFile, claimsFile, subordinateFiles
	usersFile, claimsFile, subordinateFiles = users, claims, subordinate
	return func() { usersFile, claimsFile, subordinateFiles = u, c, s }
}

// ClaimUser claims a user until what it returns is called. Locked reports whether nobody else can.
func ClaimUser(name string) (uid uint32, locked bool, release func(), err error) {
	c, err := claimUser(name)
	if err != nil {
		return 0, false, nil, err
	}
	return c.uid, c.file != nil, c.release, nil
}
