package sandbox

import "context"

// RedisPassword is what clients of the sandbox's Redis authenticate with.
func RedisPassword() string { return redisPassword }

// MakeWhole gives auto-reprovision its count back and has chains with gaps filled,
// as an operator does who has looked after a node that came back empty.
func (s *Sandbox) MakeWhole(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.WaitConverged, s.armReprovision, s.rebalance, s.WaitConverged} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
