package jail

// PretendJailed makes Verify look at a process that was started open.
func (p *Process) PretendJailed() { p.open = false }
