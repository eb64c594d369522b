// Package qemu drives QEMU as a virtual machine monitor: a trimmed q35 with
// virtio devices, started in a jail with nothing but inherited descriptors, and
// controlled through QMP. It knows what a VM is made of; it knows neither
// containers nor what the guest's agent says.
package qemu
