// Package agent is process 1 of a sandbox's virtual machine: it boots the user
// space, answers the host's requests (package manis/api/agent over
// manis/api/wire), builds containers out of disks, mounts, cgroups and
// namespaces, and starts, feeds, measures and ends their processes. The host is
// its authority: what the host asks it does. The containers are its
// adversaries: whatever lies in an image, a volume or a running container is
// foreign, so paths of a container are resolved only by threads that live in that
// container's mount namespace, and every size is bounded. Every line of it runs under
// emulation for the first time in each cold start, so it does little and avoids
// reflection, regular expressions and work at package initialisation.
//
// The package knows nothing of images, registries, command lines or the VMM.
package agent
