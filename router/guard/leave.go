package guard

// Leave is for a machine that is no node any more: it ends everything as Sweep
// does, and then removes the gate's tables, which else keep shut for ever what
// is a floating address no longer. It returns nil once all that is verified
// gone; the tables stay while anything else does.
func Leave(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	lock, err := seizeLock(cfg.StateFile)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := sweepLeft(cfg); err != nil || !cfg.UseGate {
		return err
	}
	g, err := openGate(cfg.Table)
	if err != nil {
		return err
	}
	defer g.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dropTables()
}
