package guard

import "pvc.internal/router"

// MarkedAddresses lists this host's addresses and which of them carry the
// guard's mark, for whoever looks for what was left behind. It asks the kernel
// alone: a connection to the guard would take the agent's place.
func MarkedAddresses() ([]router.KernelAddress, error) {
	a, err := openAddresses()
	if err != nil {
		return nil, err
	}
	defer a.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.list()
}
