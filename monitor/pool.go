package monitor

import (
	"context"
	"os"

	"manis/container"
	"manis/place"
	"manis/pool"
	"manis/vmm"
	"manis/vmm/qemu"
)

// PoolKind says which waiting machine a container of this configuration can have.
func PoolKind(ctx context.Context, places *place.Places, cfg *container.Config) (pool.Kind, error) {
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return pool.Kind{}, err
	}
	if cfg.Network.Mode == pool.TapMode {
		vm.NIC = &vmm.NIC{Tap: os.Stdin} // which one does not matter
	}
	return poolKind(driver, vm)
}

func poolKind(driver *qemu.Driver, vm vmm.Config) (pool.Kind, error) {
	key, _, err := driver.Fingerprint(TemplateOf(vm))
	if err != nil {
		return pool.Kind{}, err
	}
	return pool.Kind{Key: key[:poolKey], MemoryBytes: vm.MemoryBytes, VCPUs: vm.VCPUs, Accel: string(vm.Accel), Tap: vm.NIC != nil && vm.NIC.Tap != nil}, nil
}

// Missed tells who keeps the pool that a container with this configuration could have had a
// machine and found none. It waits for nobody.
func Missed(places *place.Places, cfg *container.Config) {
	if poolable(cfg) {
		pool.Miss(places.Pool(), cfg)
	}
}
