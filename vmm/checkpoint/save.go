package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// PagesPath is where the resumer finds the file of the pages, in its own root directory.
const PagesPath = "/pages"

// The resumer keeps that file open for a moment, above all descriptors of the process: at lowestPages or
// above, and so they are below highestPages.
const (
	lowestPages  = 400
	highestPages = 16 << 10
)

// Options say what of a process is not to be put back as it is.
type Options struct {
	// Given are descriptors that are in place when the resumer is executed, like standard
	// streams and sockets. The first must be of a kind that can be duplicated at will.
	Given []int
	// Replaced are files, by their paths in the process's root, in whose place another one is
	// opened for reading.
	Replaced map[string]string
	// Keep is a directory in the process's root. What the process has open below it, or itself,
	// is opened again by its path when the process is continued. Empty: of files nothing is.
	Keep string
	// Filter is a seccomp program, an array of struct sock_filter, that is installed before
	// the process goes on; the saved process's own filters cannot be read. Nil: none.
	Filter []byte
}

// Save stops a process, writes its pages to pages, an empty file, and the program that continues it
// to resumer, and lets it go on. The process must be one that the caller may trace, and be quiet: what
// happens between its system calls and other processes is not saved. It returns what is opened again below
// Options.Keep.
func Save(pid int, pages, resumer io.Writer, o Options) ([]File, error) {
	if runtime.GOARCH != "amd64" {
		return nil, errors.ErrUnsupported
	}
	p := &plan{pid: pid, keep: o.Keep}
	done := make(chan error, 1)
	go func() {
		// Only the thread that traces may ask, and it is not to be used for anything else then.
		runtime.LockOSThread()
		done <- p.save(pages, resumer, o)
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("save process %d: %w", pid, err)
	}
	return p.files, nil
}

func (p *plan) save(pages, resumer io.Writer, o Options) error {
	pid := p.pid
	file, ok := pages.(*os.File)
	if !ok || len(o.Given) == 0 {
		return errors.New("no file for its pages, or no descriptors")
	}
	t, err := seize(pid)
	defer t.release()
	if err != nil {
		return err
	}
	areas, err := readAreas(pid)
	if err != nil {
		return err
	}
	if err := t.findSyscall(areas); err != nil {
		return err
	}
	for _, th := range t.threads {
		if err := t.inspect(th); err != nil {
			return err
		}
	}
	slices.SortFunc(t.threads, func(a, b *thread) int { return a.own - b.own })
	for _, th := range t.threads {
		if err := t.interrogate(th); err != nil {
			return err
		}
	}
	actions, err := t.actions()
	if err != nil {
		return err
	}
	layout, err := t.layout()
	if err != nil {
		return err
	}
	if err := t.timers(); err != nil {
		return err
	}
	earlier, err := t.resumer()
	if err != nil {
		return err
	}
	all, err := readDescriptors(pid)
	if err != nil {
		return err
	}
	last := all[len(all)-1].fd
	if last >= highestPages {
		return fmt.Errorf("it has descriptors beyond %d", highestPages)
	}
	p.pagesFD = uint64(max(last+1, lowestPages))

	p.base = newBase(areas)
	// The kernel's areas first: they must not be mapped over before they are moved.
	p.kernels(areas)
	if err := p.memory(t, withoutResumer(areas, earlier), o.Given, layout.startArgs, file); err != nil {
		return err
	}
	p.layout(layout)
	if err := p.descriptors(all, o.Given, o.Replaced); err != nil {
		return err
	}
	p.signals(&actions)
	if err := p.run(t.threads, o.Filter); err != nil {
		return err
	}
	b, err := p.program()
	if err != nil {
		return err
	}
	_, err = resumer.Write(b)
	return err
}

// kernels moves what the kernel has put into the resumer to where the process believes it to be.
// Only an unchanged kernel has the same there.
func (p *plan) kernels(areas []area) {
	var base uint64
	for _, a := range areas {
		if a.name == "[vdso]" {
			base = a.start
		}
	}
	for _, a := range areas {
		if a.kernels() {
			s := p.call("move "+a.name, unix.SYS_MREMAP, a.start-base, a.size(), a.size(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, a.start)
			s.flags = fromVDSO
		}
	}
}

// withoutResumer leaves out what belongs to the resumer that continued the process, at the address
// earlier: its own code, and the stack that the kernel gave it. That of the process lies in an ordinary mapping
// then.
func withoutResumer(areas []area, earlier uint64) []area {
	if earlier == 0 {
		return areas
	}
	return slices.DeleteFunc(slices.Clone(areas), func(a area) bool {
		return a.grows() || a.start >= earlier && a.end <= earlier+resumerSpan
	})
}

// layout has the kernel believe what it believed of the saved process's memory.
func (p *plan) layout(l *layout) {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, l)
	p.call("set the layout of memory", unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, p.put(b.Bytes(), 8), uint64(b.Len()), 0)
}

func (p *plan) signals(actions *[signals + 1]sigaction) {
	for sig, a := range actions {
		if a == (sigaction{}) {
			continue
		}
		var b []byte
		for _, w := range []uint64{a.handler, a.flags, a.restorer, a.mask} {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		p.call("set the action of a signal", unix.SYS_RT_SIGACTION, uint64(sig), p.put(b, 8), 0, 8)
	}
}

// threadFlags are those with which the C library clones a thread, and a filter may insist on all of them.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD |
	unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// maxBurnt bounds the TIDs that are passed over because their threads have ended.
const maxBurnt = 4096

// run makes the other threads and lets all go on. The TIDs are as they were: a C library
// has them in its memory. In a PID namespace of its own, whose first process the resumer
// is, a kernel gives them out in order.
func (p *plan) run(threads []*thread, filter []byte) error {
	first := threads[0]
	if first.own != 1 {
		return fmt.Errorf("it is not the first process of its PID namespace but %d", first.own)
	}
	arch := func(th *thread) {
		if th.regs.Gs_base != 0 {
			p.call("set the GS base", unix.SYS_ARCH_PRCTL, 0x1001, th.regs.Gs_base)
		}
	}
	own := func(th *thread) error {
		arch(th)
		if th.robust[0] != 0 {
			p.call("set the robust list", unix.SYS_SET_ROBUST_LIST, th.robust[0], th.robust[1])
		}
		if r := th.rseq; r.pointer != 0 {
			p.call("register restartable sequences", unix.SYS_RSEQ, r.pointer, uint64(r.size), 0, uint64(r.signature))
		}
		p.call("name a thread", unix.SYS_PRCTL, unix.PR_SET_NAME, p.cstring(th.name)).flags = mayFail
		extended, err := th.extendedState(componentEnd)
		if err != nil {
			return err
		}
		th.stack[1] &= 0xffffffff
		p.call("go on", unix.SYS_RT_SIGRETURN, p.put(th.frame(p.put(extended, 64)), 64)).flags = onFrame
		return nil
	}
	p.call("set the FS base", unix.SYS_ARCH_PRCTL, 0x1002, first.regs.Fs_base)
	p.call("set the TID's address", unix.SYS_SET_TID_ADDRESS, first.cleared)
	if filter != nil {
		var b []byte
		b = binary.LittleEndian.AppendUint64(b, uint64(len(filter)/8))
		b = binary.LittleEndian.AppendUint64(b, p.put(filter, 8))
		p.call("install a seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, p.put(b, 8))
	}
	tid := 2
	var burns, clones []int
	for _, th := range threads[1:] {
		if th.own-tid > maxBurnt {
			return fmt.Errorf("%d of its threads have ended", th.own-tid)
		}
		for ; tid < th.own; tid++ {
			burns = append(burns, len(p.steps))
			s := p.call("pass over a TID", unix.SYS_CLONE, threadFlags) // the kernel writes TIDs to no address
			s.flags, s.wanted = makesThread|checked, uint64(tid)
		}
		clones = append(clones, len(p.steps))
		s := p.call("make a thread", unix.SYS_CLONE, threadFlags, 0, th.cleared, th.cleared, th.regs.Fs_base)
		s.flags, s.wanted = makesThread|checked, uint64(tid)
		tid++
	}
	if err := own(first); err != nil {
		return err
	}
	for i, at := range clones {
		p.steps[at].thread = uint64(len(p.steps))
		if err := own(threads[1+i]); err != nil {
			return err
		}
	}
	for _, at := range burns {
		p.steps[at].thread = uint64(len(p.steps))
	}
	if len(burns) > 0 {
		p.call("end a thread", unix.SYS_EXIT, 0)
	}
	return nil
}

// What of a mapping is put back how: pieces that hold something are mapped from the file of
// the pages, all else is memory without content.
const (
	pageSize = 4096
	// gap is the most of nothing that is stored between two pieces rather than mapping
	// them apart, bytes.
	gap = 64 << 10
	// stackRoom is what the first thread's stack may grow to.
	stackRoom = 8 << 20
)

var zeroPage [pageSize]byte

// memory writes the content of every mapping to file and adds the steps that map it.
func (p *plan) memory(t *tracee, areas []area, given []int, words uint64, file *os.File) error {
	p.call("bound memory", unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, 1).flags = mayFail
	lowest := 0
	for slices.Contains(given, lowest) {
		lowest++
	}
	s := p.call("open "+PagesPath, unix.SYS_OPENAT, cwd, p.cstring(PagesPath), unix.O_RDONLY|unix.O_CLOEXEC)
	s.flags, s.wanted = checked, uint64(lowest)
	p.call("place "+PagesPath, unix.SYS_DUP3, uint64(lowest), p.pagesFD, unix.O_CLOEXEC)
	p.call("place "+PagesPath, unix.SYS_CLOSE, uint64(lowest))
	w := &pageWriter{file: file}
	for i, a := range areas {
		if a.kernels() {
			continue
		}
		if why := a.refusal(); why != "" {
			return errors.New(why)
		}
		start := a.start
		if a.name == "[stack]" && a.size() < stackRoom {
			start = a.end - stackRoom
			if i > 0 {
				start = max(start, areas[i-1].end)
			}
		}
		if err := p.area(t, a, start, words, w); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := file.Truncate(w.at); err != nil {
		return err
	}
	p.call("close "+PagesPath, unix.SYS_CLOSE, p.pagesFD)
	return nil
}

// area adds one mapping. Where it is to be there may be the stack that the kernel has given to the resumer, which
// has no more use for it. What holds the words of the process's command line is copied: /proc/PID/cmdline
// does not show words that lie in a file.
func (p *plan) area(t *tracee, a area, start, words uint64, w *pageWriter) error {
	const private = unix.MAP_PRIVATE | unix.MAP_NORESERVE | unix.MAP_FIXED
	what := "map memory"
	if a.name != "" {
		what = "map " + a.name
	}
	var pieces []piece
	if a.prot != 0 && !a.forgets() {
		var err error
		if pieces, err = t.pieces(a, w); err != nil {
			return err
		}
	}
	if len(pieces) != 1 || pieces[0].start != start || pieces[0].end != a.end {
		none := ^uint64(0)
		p.call(what, unix.SYS_MMAP, start, a.end-start, uint64(a.prot), private|unix.MAP_ANONYMOUS, none)
	}
	for _, piece := range pieces {
		if n := piece.end - piece.start; piece.start <= words && words < piece.end && n < stackRoom && a.prot&unix.PROT_WRITE != 0 {
			p.call(what, unix.SYS_MMAP, piece.start, n, uint64(a.prot), private|unix.MAP_ANONYMOUS, ^uint64(0))
			s := p.call(what, unix.SYS_PREAD64, p.pagesFD, piece.start, n, uint64(piece.offset))
			s.flags, s.wanted = checked, n
			continue
		}
		p.call(what, unix.SYS_MMAP, piece.start, piece.end-piece.start, uint64(a.prot), private, p.pagesFD, uint64(piece.offset))
	}
	return nil
}

// piece is a part of a mapping that holds something.
type piece struct {
	start, end uint64
	offset     int64
}

// pieces writes what a mapping holds.
func (t *tracee) pieces(a area, w *pageWriter) ([]piece, error) {
	var pieces []piece
	buf := make([]byte, 1<<20)
	present, err := t.present(a)
	if err != nil {
		return nil, err
	}
	file := t.mapped(a)
	if file != nil {
		defer file.Close()
	}
	for at := a.start; at < a.end; {
		n := min(uint64(len(buf)), a.end-at)
		first := (at - a.start) / pageSize
		if !slices.Contains(present[first:first+n/pageSize], true) && (!a.file() || hole(file, int64(a.offset+at-a.start), int64(n))) {
			at += n
			continue
		}
		k, err := t.memory.ReadAt(buf[:n], int64(at))
		// Beyond the end of its file nothing can be read.
		if err != nil && !a.file() {
			return nil, fmt.Errorf("read the process's memory at %#x: %w", at, err)
		}
		for page := range slices.Chunk(buf[:k&^(pageSize-1)], pageSize) {
			if !bytes.Equal(page, zeroPage[:]) {
				last := len(pieces) - 1
				if last >= 0 && at-pieces[last].end <= gap {
					if err := w.zeros(int64(at - pieces[last].end)); err != nil {
						return nil, err
					}
				} else {
					pieces = append(pieces, piece{start: at, offset: w.at})
					last++
				}
				if err := w.write(page); err != nil {
					return nil, err
				}
				pieces[last].end = at + pageSize
			}
			at += pageSize
		}
		if err != nil {
			break
		}
	}
	return pieces, nil
}

// mapped opens the file of a mapping; nil: there is none, or it is not where it was.
func (t *tracee) mapped(a area) *os.File {
	if !a.file() {
		return nil
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root%s", t.pid, a.name), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Ino != a.inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil
	}
	return f
}

// hole reports whether a part of a file holds nothing. To read the memory of a large guest that has used little of it
// would fill the host's page cache with zeros.
func hole(f *os.File, offset, n int64) bool {
	if f == nil {
		return false
	}
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	return err == unix.ENXIO || err == nil && data >= offset+n
}

// present says of each page of a mapping whether it has ever been touched.
func (t *tracee) present(a area) ([]bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", t.pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := a.size() / pageSize
	b := make([]byte, n*8)
	if _, err := f.ReadAt(b, int64(a.start/pageSize*8)); err != nil {
		return nil, fmt.Errorf("read which pages the process has: %w", err)
	}
	present := make([]bool, n)
	for i := range present {
		present[i] = binary.LittleEndian.Uint64(b[8*i:])>>62 != 0 // present or swapped
	}
	return present, nil
}

// pageWriter writes pages one after the other; pages of zeros are holes.
type pageWriter struct {
	file *os.File
	at   int64
	buf  []byte
}

func (w *pageWriter) write(page []byte) error {
	w.buf = append(w.buf, page...)
	w.at += int64(len(page))
	if len(w.buf) < 4<<20 {
		return nil
	}
	return w.flush()
}

func (w *pageWriter) zeros(n int64) error {
	err := w.flush()
	w.at += n
	return err
}

func (w *pageWriter) flush() error {
	_, err := w.file.WriteAt(w.buf, w.at-int64(len(w.buf)))
	w.buf = w.buf[:0]
	return err
}
