// Package storage turns what a container's user says of its files into what a VM can be given: scratch disks
// for writable layers, named volumes, and typed mounts read from docker's flags. Everything it keeps on the
// host survives a kill at any moment and is safe under concurrent use by several processes. It knows nothing
// of QEMU, of images or of the guest, and mounts nothing itself.
package storage
