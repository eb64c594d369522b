package containerd

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// all reads a stream to its end: items are those of one message.
func all[T, E any](items func(*T) []E) func(grpc.ServerStreamingClient[T], error) ([]E, error) {
	return func(stream grpc.ServerStreamingClient[T], err error) (list []E, _ error) {
		if err != nil {
			return nil, err
		}
		for {
			next, err := stream.Recv()
			if err == io.EOF {
				return list, nil
			}
			if err != nil {
				return list, err
			}
			list = append(list, items(next)...)
		}
	}
}

// TestEveryCall makes every call that the kubelet can make. What containerd does not have itself says so.
func TestEveryCall(t *testing.T) {
	client, ctx := kubelet(t)
	images := cri.NewImageServiceClient(suite.conn)
	p := newPod(t, "calls", func(c *cri.PodSandboxConfig) {
		c.Labels, c.Annotations = map[string]string{"test": "calls"}, map[string]string{"some": "thing"}
	})
	id := p.start("one", func(c *cri.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"test": "calls"}, map[string]string{"some": "thing"}
	}, "sh", "-c", "i=0; trap 'exit 0' TERM; while :; do i=$((i+1)); echo line $i; sleep 0.1; done")
	selector := map[string]string{"test": "calls"}
	other := p.start("other", nil, "sh", "-c", idle) // to be stopped and removed
	log := filepath.Join(p.config.LogDirectory, "one.log")
	events, leave := context.WithCancel(ctx)
	defer leave()
	push(t, derived(t, func(c *v1.Config) { c.User = "1002:5" }), "tests/pulled:latest")
	const pulled = "example.com/tests/pulled:latest"

	// unheard is an error of a call that this containerd does not have.
	unheard := func(err error) error {
		if status.Code(err) != codes.Unimplemented {
			return fmt.Errorf("want Unimplemented, got %v", err)
		}
		return nil
	}
	// wrong is an answer that is not as it should be.
	wrong := func(answer any) error { return fmt.Errorf("answer: %v", answer) }
	type call struct {
		method string
		make   func() error
	}
	calls := []call{
		{"Version", func() error {
			r, err := client.Version(ctx, new(cri.VersionRequest))
			if err == nil && (r.RuntimeName != "containerd" || r.RuntimeApiVersion != "v1") {
				return wrong(r)
			}
			return err
		}},
		{"Status", func() error {
			r, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
			if err != nil {
				return err
			}
			for _, c := range r.Status.Conditions {
				if !c.Status && c.Type != "ContainerdHasNoDeprecationWarnings" {
					return wrong(c)
				}
			}
			if !slices.ContainsFunc(r.RuntimeHandlers, func(h *cri.RuntimeHandler) bool { return h.Name == "manis" && h.Features != nil }) {
				return wrong(r.RuntimeHandlers)
			}
			return nil
		}},
		{"RuntimeConfig", func() error {
			r, err := client.RuntimeConfig(ctx, new(cri.RuntimeConfigRequest))
			if err == nil && r.Linux == nil {
				return wrong(r)
			}
			return err
		}},
		{"UpdateRuntimeConfig", func() error {
			_, err := client.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.88.7.0/24"}}})
			return err
		}},
		{"RunPodSandbox", func() error { return nil }}, // newPod has
		{"PodSandboxStatus", func() error {
			r, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
			if err != nil {
				return err
			}
			if s := r.Status; s.State != cri.PodSandboxState_SANDBOX_READY || s.Metadata.Name != "calls" || s.Labels["test"] != "calls" || s.Annotations["some"] != "thing" || s.RuntimeHandler != "manis" || len(r.Info) == 0 {
				return wrong(r)
			}
			return nil
		}},
		{"ListPodSandbox", func() error {
			r, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: selector, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
			if err == nil && (len(r.Items) != 1 || r.Items[0].Id != p.id) {
				return wrong(r)
			}
			return err
		}},
		{"StreamPodSandboxes", func() error {
			list, err := all((*cri.StreamPodSandboxesResponse).GetPodSandboxes)(client.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{Id: p.id}}))
			if err == nil && (len(list) != 1 || list[0].Id != p.id) {
				return wrong(list)
			}
			return err
		}},
		{"CreateContainer", func() error {
			r, err := client.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "made"}, Image: &cri.ImageSpec{Image: image}, LogPath: "made.log",
			}})
			if err != nil {
				return err
			}
			if s := p.status(r.ContainerId); s.State != cri.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 {
				return wrong(s)
			}
			_, err = client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: r.ContainerId})
			return err
		}},
		{"StartContainer", func() error {
			if _, err := client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err == nil {
				return fmt.Errorf("a container was started twice")
			}
			return nil
		}},
		{"ContainerStatus", func() error {
			r, err := client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
			if err != nil {
				return err
			}
			if s := r.Status; s.State != cri.ContainerState_CONTAINER_RUNNING || s.Labels["test"] != "calls" || s.Annotations["some"] != "thing" || s.LogPath != log || s.StartedAt < s.CreatedAt || s.Image.GetImage() != image {
				return wrong(s)
			}
			return nil
		}},
		{"ListContainers", func() error {
			r, err := client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.id, LabelSelector: selector}})
			if err == nil && (len(r.Containers) != 1 || r.Containers[0].Id != id) {
				return wrong(r)
			}
			return err
		}},
		{"StreamContainers", func() error {
			list, err := all((*cri.StreamContainersResponse).GetContainers)(client.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.id}}))
			if err == nil && len(list) != 2 {
				return wrong(list)
			}
			return err
		}},
		{"UpdateContainerResources", func() error {
			_, err := client.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{
				MemoryLimitInBytes: 80 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
			}})
			if err != nil {
				return err
			}
			if out, _ := p.exec(id, "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"); out != "83886080\n50000 100000" {
				return wrong(out)
			}
			if r := p.status(id).Resources.GetLinux(); r.GetMemoryLimitInBytes() != 80<<20 || r.GetCpuQuota() != 50000 {
				return wrong(r)
			}
			return nil
		}},
		{"UpdatePodSandboxResources", func() error {
			_, err := client.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: &cri.LinuxContainerResources{CpuShares: 512}})
			return err
		}},
		{"ReopenContainerLog", func() error {
			stage.Eventually(t, "a log", func() bool { b, _ := os.ReadFile(log); return len(b) > 0 })
			if err := os.Rename(log, log+".1"); err != nil {
				return err
			}
			if _, err := client.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
				return err
			}
			stage.Eventually(t, "a line in the new log", func() bool { b, _ := os.ReadFile(log); return strings.Contains(string(b), "stdout F line ") })
			// No line is lost between them.
			older, _ := os.ReadFile(log + ".1")
			newer, _ := os.ReadFile(log)
			n := 0
			for line := range strings.Lines(string(older) + string(newer)) {
				if n++; strings.HasSuffix(line, "\n") && !strings.HasSuffix(line, fmt.Sprintf(" stdout F line %d\n", n)) {
					return wrong(line)
				}
			}
			return nil
		}},
		{"ExecSync", func() error {
			r, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 9"}})
			if err == nil && (string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 9) {
				return wrong(r)
			}
			if _, late := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "4321"}, Timeout: 1}); status.Code(late) != codes.DeadlineExceeded {
				return wrong(late)
			}
			if out, _ := p.exec(id, "ps"); strings.Contains(out, "sleep 4321") {
				return wrong(out)
			}
			return err
		}},
		{"Exec", func() error {
			r, err := client.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}) // TestExecStream uses it
			if err == nil && !strings.HasPrefix(r.Url, "http://127.0.0.1:") {
				return wrong(r)
			}
			return err
		}},
		{"Attach", func() error { // TestAttach uses it
			_, err := client.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true})
			return err
		}},
		{"PortForward", func() error { // TestPortForward uses it
			_, err := client.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
			return err
		}},
		{"ContainerStats", func() error {
			r, err := client.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
			if err == nil && (r.Stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || r.Stats.Memory.GetWorkingSetBytes().GetValue() == 0 || r.Stats.Attributes.Labels["test"] != "calls") {
				return wrong(r)
			}
			return err
		}},
		{"ListContainerStats", func() error {
			r, err := client.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: p.id}})
			if err == nil && len(r.Stats) != 2 {
				return wrong(r)
			}
			return err
		}},
		{"StreamContainerStats", func() error {
			list, err := all((*cri.StreamContainerStatsResponse).GetContainerStats)(client.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{Id: id}}))
			if err == nil && (len(list) != 1 || list[0].Memory.GetWorkingSetBytes().GetValue() == 0) {
				return wrong(list)
			}
			return err
		}},
		{"PodSandboxStats", func() error {
			r, err := client.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.id})
			if err == nil && (r.Stats.Attributes.Id != p.id || len(r.Stats.Linux.GetContainers()) != 2 || r.Stats.Linux.GetMemory() == nil) {
				return wrong(r)
			}
			return err
		}},
		{"ListPodSandboxStats", func() error {
			r, err := client.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.id}})
			if err == nil && (len(r.Stats) != 1 || r.Stats[0].Attributes.Id != p.id) {
				return wrong(r)
			}
			return err
		}},
		{"StreamPodSandboxStats", func() error {
			list, err := all((*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats)(client.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.id}}))
			if err == nil && (len(list) != 1 || list[0].GetAttributes().GetId() != p.id) {
				return wrong(list)
			}
			return err
		}},
		{"ListMetricDescriptors", func() error {
			r, err := client.ListMetricDescriptors(ctx, new(cri.ListMetricDescriptorsRequest))
			if err == nil && len(r.Descriptors) == 0 {
				return wrong(r)
			}
			return err
		}},
		{"ListPodSandboxMetrics", func() error {
			r, err := client.ListPodSandboxMetrics(ctx, new(cri.ListPodSandboxMetricsRequest))
			if err == nil && !slices.ContainsFunc(r.PodMetrics, func(m *cri.PodSandboxMetrics) bool { return m.PodSandboxId == p.id }) {
				return wrong(r)
			}
			return err
		}},
		{"StreamPodSandboxMetrics", func() error {
			list, err := all((*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)(client.StreamPodSandboxMetrics(ctx, new(cri.StreamPodSandboxMetricsRequest)))
			if err == nil && len(list) == 0 {
				return wrong(list)
			}
			return err
		}},
		{"CheckpointContainer", func() error {
			location := filepath.Join(t.TempDir(), "checkpoint.tar")
			if _, err := client.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: id, Location: location}); err == nil {
				return fmt.Errorf("there is a checkpoint now: test it")
			}
			if _, err := os.Stat(location); !os.IsNotExist(err) {
				return fmt.Errorf("a file was left")
			}
			if out, _ := p.exec(id, "echo", "runs"); out != "runs" {
				return wrong(out)
			}
			return nil
		}},
		{"CheckpointPod", func() error {
			_, err := client.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: p.id})
			return unheard(err)
		}},
		{"RestorePod", func() error {
			_, err := client.RestorePod(ctx, new(cri.RestorePodRequest))
			return unheard(err)
		}},
		{"GetContainerEvents", func() error {
			stream, err := client.GetContainerEvents(events, new(cri.GetEventsRequest))
			if err != nil {
				return err
			}
			if _, err := stream.Header(); err != nil {
				return err
			}
			brief := p.start("brief", nil, "true")
			want := []cri.ContainerEventType{cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT, cri.ContainerEventType_CONTAINER_STOPPED_EVENT}
			for len(want) > 0 {
				e, err := stream.Recv()
				if err != nil {
					return err
				}
				if e.ContainerId != brief {
					continue
				}
				if e.ContainerEventType != want[0] || e.PodSandboxStatus.GetId() != p.id {
					return wrong(e)
				}
				want = want[1:]
			}
			_, err = client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: brief})
			return err
		}},
		{"StopContainer", func() error {
			for range 2 { // the second time it has stopped
				if _, err := client.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: other, Timeout: 30}); err != nil {
					return err
				}
			}
			if s := p.status(other); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 || s.FinishedAt < s.StartedAt {
				return wrong(s)
			}
			stubborn := p.start("stubborn", nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
			if _, err := client.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: stubborn, Timeout: 1}); err != nil {
				return err
			}
			if s := p.status(stubborn); s.ExitCode != 137 {
				return wrong(s)
			}
			return nil
		}},
		{"RemoveContainer", func() error {
			for range 2 { // the second time it is not there
				if _, err := client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: other}); err != nil {
					return err
				}
			}
			// One that runs is stopped.
			_, err := client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		}},
		{"StopPodSandbox", func() error {
			for range 2 {
				if _, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
					return err
				}
			}
			r, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
			if err == nil && r.Status.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				return wrong(r)
			}
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
			if err != nil {
				return err
			}
			if _, gone := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id}); status.Code(gone) != codes.NotFound {
				return wrong(gone)
			}
			return nil
		}},

		{"PullImage", func() error {
			r, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: pulled}})
			if err == nil && r.ImageRef == "" {
				return wrong(r)
			}
			if _, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "example.com/tests/nonesuch:latest"}}); status.Code(err) != codes.NotFound {
				return wrong(err)
			}
			return err
		}},
		{"ImageStatus", func() error {
			r, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: pulled}})
			if err == nil && (r.Image.GetUid().GetValue() != 1002 || !slices.Contains(r.Image.RepoTags, pulled)) {
				return wrong(r)
			}
			if r, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "example.com/tests/nonesuch:latest"}}); err != nil || r.Image != nil {
				return wrong(err)
			}
			return err
		}},
		{"ListImages", func() error {
			r, err := images.ListImages(ctx, new(cri.ListImagesRequest))
			if err == nil && !slices.ContainsFunc(r.Images, func(i *cri.Image) bool { return slices.Contains(i.RepoTags, pulled) }) {
				return wrong(r)
			}
			return err
		}},
		{"StreamImages", func() error {
			list, err := all((*cri.StreamImagesResponse).GetImages)(images.StreamImages(ctx, new(cri.StreamImagesRequest)))
			if err == nil && !slices.ContainsFunc(list, func(i *cri.Image) bool { return slices.Contains(i.RepoTags, pulled) }) {
				return wrong(list)
			}
			return err
		}},
		{"ImageFsInfo", func() error {
			r, err := images.ImageFsInfo(ctx, new(cri.ImageFsInfoRequest))
			if err == nil && (len(r.ImageFilesystems) == 0 || r.ImageFilesystems[0].FsId.GetMountpoint() == "") {
				return wrong(r)
			}
			return err
		}},
		{"RemoveImage", func() error {
			for range 2 {
				if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: pulled}}); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	var missing []string
	for _, service := range []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			missing = append(missing, m.MethodName)
		}
		for _, s := range service.Streams {
			missing = append(missing, s.StreamName)
		}
	}
	for _, c := range calls {
		if err := c.make(); err != nil {
			t.Errorf("%s: %v", c.method, err)
		}
		i := slices.Index(missing, c.method)
		if i < 0 {
			t.Fatalf("there is no call %s", c.method)
		}
		missing = slices.Delete(missing, i, i+1)
	}
	if len(missing) > 0 {
		t.Errorf("nobody calls %s", strings.Join(missing, ", "))
	}
}

// TestBadCalls are calls that cannot be answered: each with an error, and what runs goes on.
func TestBadCalls(t *testing.T) {
	client, ctx := kubelet(t)
	p := newPod(t, "bad", nil)
	id := p.start("one", nil, "sh", "-c", idle)
	ended := p.start("ended", nil, "true")
	stage.Eventually(t, "the end of a container", func() bool { return p.status(ended).State == cri.ContainerState_CONTAINER_EXITED })
	for name, c := range map[string]struct {
		make  func() error
		code  codes.Code
		words string
	}{
		"the status of a container that is not there": {func() error {
			_, err := client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "nonesuch"})
			return err
		}, codes.NotFound, ""},
		"the status of a sandbox that is not there": {func() error {
			_, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: "nonesuch"})
			return err
		}, codes.NotFound, ""},
		"an exec in one that is not there": {func() error {
			_, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "nonesuch", Cmd: []string{"true"}})
			return err
		}, codes.NotFound, ""},
		"an exec in one that has ended": {func() error {
			_, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ended, Cmd: []string{"true"}})
			return err
		}, codes.Unknown, "CONTAINER_EXITED"},
		"an exec of nothing": {func() error {
			_, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id})
			return err
		}, codes.Unknown, ""},
		"an exec of a program that is not there": {func() error {
			_, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/nonesuch"}})
			return err
		}, codes.Unknown, "no such file or directory"},
		"an exec of a directory": {func() error {
			_, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/tmp"}})
			return err
		}, codes.Unknown, "is a directory"},
		"the attachment to one that has ended": {func() error {
			_, err := client.Attach(ctx, &cri.AttachRequest{ContainerId: ended, Stdout: true})
			return err
		}, codes.Unknown, "CONTAINER_EXITED"},
		"the log of one that has ended": {func() error {
			_, err := client.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: ended})
			return err
		}, codes.Unknown, "not running"},
		"statistics of one that is not there": {func() error {
			_, err := client.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: "nonesuch"})
			return err
		}, codes.Unknown, "not found"},
		"limits of one that is not there": {func() error {
			_, err := client.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: "nonesuch", Linux: new(cri.LinuxContainerResources)})
			return err
		}, codes.NotFound, ""},
		"processors that are not there": {func() error {
			_, err := client.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpusetCpus: "500"}})
			return err
		}, codes.Unknown, "cpu"},
		"a handler that is not there": {func() error {
			config := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "unhandled", Namespace: "default", Uid: "unhandled"}}
			_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "nonesuch"})
			return err
		}, codes.Unknown, "nonesuch"},
		"a second sandbox of the name": {func() error {
			_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: "manis"})
			return err
		}, codes.Unknown, "reserved"},
	} {
		err := c.make()
		if status.Code(err) != c.code && !(c.code == codes.Unknown && err != nil) || !strings.Contains(status.Convert(err).Message(), c.words) {
			t.Errorf("%s: want %s with %q, got %v", name, c.code, c.words, err)
		}
	}
	// Sandboxes that cannot be.
	for name, c := range map[string]struct {
		change func(*cri.PodSandboxConfig)
		words  string
	}{
		"an accelerator that is not there": {func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"manis.accel": "nonesuch"} }, "nonesuch"},
		"a boot that is not there":         {func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"manis.boot": "nonesuch"} }, "nonesuch"},
		"a sysctl that is not there":       {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.nonesuch": "1"} }, "nonesuch"},
		"a value that a sysctl cannot have": {func(c *cri.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "many"}
		}, "shm_rmid_forced"},
		"no name": {func(c *cri.PodSandboxConfig) { c.Metadata = nil }, "metadata"},
	} {
		config := &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "cannot", Namespace: "default", Uid: "cannot"}, LogDirectory: dir("logs", "cannot"),
			Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + parent + "/cannot"},
		}
		c.change(config)
		r, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "manis"})
		if err == nil || !strings.Contains(status.Convert(err).Message(), c.words) {
			t.Errorf("%s: want an error with %q, got %v", name, c.words, err)
		}
		if err == nil {
			client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
		}
	}
	// A limit beyond what the host has is none.
	large := newPod(t, "large", func(c *cri.PodSandboxConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 50, CpuQuota: 1e9, CpuPeriod: 100000}
	})
	if out, code := large.output("one", nil, "true"); code != 0 {
		t.Errorf("a pod with limits beyond the host's size: %q, exit %d", out, code)
	}
	// Containers that cannot be.
	p.fails("no-image", "", func(c *cri.ContainerConfig) { c.Image.Image = "example.com/tests/nonesuch:latest" })
	p.fails("no-program", "no such file or directory", func(c *cri.ContainerConfig) { c.Command = []string{"/nonesuch"} })
	p.fails("no-directory", "", func(c *cri.ContainerConfig) { c.WorkingDir = "relative" })
	p.fails("no-device", "nonesuch", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/nonesuch", ContainerPath: "/dev/x", Permissions: "rw"}}
	})
	if out, _ := p.exec(id, "echo", "lives"); out != "lives" {
		t.Errorf("what ran before: %q", out)
	}
	// And everything is as before.
	p.start("later", nil, "true")
}
