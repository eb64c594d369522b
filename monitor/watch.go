package monitor

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/agent"
	"manis/api/monitor"
	"manis/vmm"
)

func (f *front) Stats(ctx context.Context, _ *monitor.Empty) (*monitor.StatsResponse, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	s, err := r.sandbox.Stats(ctx, containerID)
	if err != nil {
		return nil, wireError(err)
	}
	return Figures(s, r.sandbox.VM().Info(), os.Getpid()), nil
}

// Figures are a container's counters as its guest has them, with what docker makes of them and what the host pays. The machine's
// monitor is in the process owner.
func Figures(s *agent.StatsResponse, info vmm.Info, owner int) *monitor.StatsResponse {
	limit := s.MemoryLimitBytes
	if limit == 0 || limit > info.MemoryBytes {
		limit = info.MemoryBytes
	}
	// Docker's figure leaves out what the kernel may drop at any time.
	used := s.MemoryBytes
	if inactive := s.MemoryStat["inactive_file"]; inactive < used {
		used -= inactive
	}
	return &monitor.StatsResponse{
		MemoryBytes: used, MemoryLimitBytes: limit,
		CpuUsageUs: s.CpuUsageUs, ReadUnixNs: time.Now().UnixNano(), Cpus: uint32(info.VCPUs),
		Pids: s.Pids, PidsLimit: s.PidsLimit,
		ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes,
		RxBytes: s.RxBytes, TxBytes: s.TxBytes,
		HostPssBytes: pss(owner) + pss(info.PID),
	}
}

// pss is the proportional set size of a process in bytes, 0 if it cannot be
// read.
func pss(pid int) uint64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kb, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(value, " kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

func (f *front) Top(ctx context.Context, _ *monitor.Empty) (*monitor.TopResponse, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	list, err := r.sandbox.Processes(ctx, containerID)
	if err != nil {
		return nil, wireError(err)
	}
	return Processes(list), nil
}

// Processes is a guest's list of processes as docker's top has it.
func Processes(list *agent.ProcessesResponse) *monitor.TopResponse {
	resp := &monitor.TopResponse{Titles: []string{"UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"}}
	for _, p := range list.Processes {
		user := p.User
		if user == "" {
			user = strconv.FormatUint(uint64(p.Uid), 10)
		}
		tty := p.Tty
		if tty == "" {
			tty = "?"
		}
		started := time.Unix(0, p.StartedUnixNs)
		stime := started.Format("15:04")
		if time.Since(started) > 24*time.Hour {
			stime = started.Format("Jan02")
		}
		cpu := p.CpuMs / 1000
		resp.Rows = append(resp.Rows, &monitor.TopRow{Cells: []string{
			user, strconv.FormatUint(uint64(p.Pid), 10), strconv.FormatUint(uint64(p.Ppid), 10), stime, tty,
			fmt.Sprintf("%02d:%02d:%02d", cpu/3600, cpu/60%60, cpu%60), p.Command,
		}})
	}
	return resp
}

func (f *front) CopyOut(ctx context.Context, req *monitor.CopyOutRequest) (*monitor.CopyOutResponse, error) {
	r, err := f.withFiles(ctx)
	if err != nil {
		return nil, err
	}
	return copyThrough(ctx, f, r, req.Stream, false, func(ctx context.Context, token uint64) (*monitor.CopyOutResponse, error) {
		s, err := r.sandbox.CopyOut(ctx, &agent.CopyOutRequest{Id: containerID, Path: req.Path, Stream: token, FollowLink: req.FollowLink})
		if err != nil {
			return nil, err
		}
		return &monitor.CopyOutResponse{Name: s.Name, Size: s.Size, Mode: s.Mode, MtimeUnixNs: s.MtimeUnixNs, LinkTarget: s.LinkTarget, IsDir: s.IsDir}, nil
	})
}

func (f *front) CopyIn(ctx context.Context, req *monitor.CopyInRequest) (*monitor.Empty, error) {
	r, err := f.withFiles(ctx)
	if err != nil {
		return nil, err
	}
	return copyThrough(ctx, f, r, req.Stream, true, func(ctx context.Context, token uint64) (*monitor.Empty, error) {
		return &monitor.Empty{}, r.sandbox.CopyIn(ctx, &agent.CopyInRequest{Id: containerID, Path: req.Path, Stream: token, KeepOwnership: req.KeepOwnership, MustLast: f.copying})
	})
}

// copyThrough joins a stream of the front end with one of the agent for the
// time of one request. The token 0 asks for what the path is, without content.
func copyThrough[Resp any](ctx context.Context, f *front, r *round, token uint64, in bool, request func(context.Context, uint64) (Resp, error)) (resp Resp, err error) {
	if token == 0 {
		resp, err = request(ctx, 0)
		if status.Code(err) == codes.NotFound && !f.copying && !r.running() {
			// It is the container that the agent no longer has, and not the path.
			return resp, status.Errorf(codes.Aborted, "container %s is not running", f.cfg.ID[:12])
		}
		return resp, wireError(err)
	}
	theirs, err := f.link.Claim(ctx, token)
	if err != nil {
		return resp, err
	}
	defer theirs.Close()
	ours, guestToken, err := r.sandbox.Stream()
	if err != nil {
		return resp, wireError(err)
	}
	defer ours.Close()
	var join errgroup.Group
	join.Go(func() error {
		if in {
			pass(ours, theirs)
		} else {
			pass(theirs, ours)
		}
		return nil
	})
	resp, err = request(ctx, guestToken)
	if err != nil {
		// Nobody reads or writes any more: end the join from both sides.
		ours.Close()
		theirs.Close()
		// A half-closed stream still delivers; do not wait for it.
		return resp, wireError(err)
	}
	join.Wait()
	return resp, nil
}

// pass copies to the end and tells the reader so.
func pass(to, from net.Conn) {
	buf := make([]byte, copyBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			to.Close()
			return
		}
	}
}
