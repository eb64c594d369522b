package pool

import (
	"testing"
	"time"
)

// Demand is a pure function of requests and a clock that only this test moves.
func TestDemand(t *testing.T) {
	const remember = 5 * time.Minute
	type step struct {
		pass time.Duration // before the requests
		asks int
		want int
	}
	tests := []struct {
		name        string
		least, most int
		steps       []step
	}{
		{"nobody asks", 2, 8, []step{{0, 0, 2}, {time.Hour, 0, 2}}},
		{"a burst counts at once", 2, 8, []step{{0, 5, 5}}},
		{"within bounds", 2, 8, []step{{0, 50, 8}}},
		{"the next burst still finds machines", 0, 8, []step{{0, 4, 4}, {time.Minute, 0, 3}, {0, 4, 4}}},
		{"half is forgotten in time, then all", 1, 16, []step{{0, 16, 16}, {remember, 0, 8}, {remember, 0, 4}, {remember, 0, 2}, {remember, 0, 1}, {24 * time.Hour, 0, 1}}},
		{"one request is worth one machine for a while", 0, 8, []step{{0, 1, 1}, {remember - time.Second, 0, 1}, {2 * time.Second, 0, 0}}},
		{"now and then is not often", 0, 8, []step{{0, 1, 1}, {2 * time.Minute, 1, 1}, {2 * time.Minute, 1, 1}, {2 * time.Minute, 1, 1}}},
		{"slow steady demand", 0, 8, []step{{0, 1, 1}, {10 * time.Second, 1, 2}, {10 * time.Second, 1, 2}, {10 * time.Second, 1, 2}, {10 * time.Second, 1, 2}, {10 * time.Second, 1, 3}, {10 * time.Second, 1, 3}}},
		{"a minimum above demand", 3, 8, []step{{0, 1, 3}}},
		{"a clock that stands or goes back forgets nothing", 0, 8, []step{{time.Hour, 4, 4}, {0, 0, 4}, {-time.Hour, 0, 4}, {time.Hour, 0, 4}}},
		{"years of sleep", 1, 8, []step{{0, 8, 8}, {250 * 365 * 24 * time.Hour, 0, 1}, {0, 1, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d Demand
			now := time.Duration(0)
			for i, s := range tt.steps {
				now += s.pass
				for range s.asks {
					d.Asked(now, remember)
				}
				if got := d.Want(now, remember, tt.least, tt.most); got != s.want {
					t.Errorf("step %d, after %v: %d machines, want %d (%+v)", i, now, got, s.want, d)
				}
			}
		})
	}
}

// How often somebody looks must not matter.
func TestDemandDoesNotDependOnLooking(t *testing.T) {
	var often, once Demand
	for range 7 {
		often.Asked(0, time.Minute)
		once.Asked(0, time.Minute)
	}
	for now := time.Duration(0); now <= 90*time.Second; now += 50 * time.Millisecond {
		often.Want(now, time.Minute, 0, 100)
	}
	if a, b := often.Want(90*time.Second, time.Minute, 0, 100), once.Want(90*time.Second, time.Minute, 0, 100); a != b {
		t.Errorf("%d when asked often, %d when asked once", a, b)
	}
}

func TestFit(t *testing.T) {
	tests := []struct {
		name  string
		needs []need
		room  uint64
		want  []int
	}{
		{"enough", []need{{2, 3, 100}, {0, 1, 50}}, 1000, []int{3, 1}},
		{"exactly enough", []need{{2, 3, 100}}, 300, []int{3}},
		{"one byte short", []need{{2, 3, 100}}, 299, []int{2}},
		{"nothing", []need{{2, 3, 100}}, 0, []int{0}},
		{"the least of all come first", []need{{1, 9, 100}, {2, 2, 100}}, 300, []int{1, 2}},
		{"then in turn", []need{{0, 9, 100}, {0, 9, 100}}, 500, []int{3, 2}},
		{"small ones fit where large ones do not", []need{{1, 1, 1000}, {1, 3, 100}}, 350, []int{0, 3}},
		{"never more than wanted", []need{{5, 1, 1}}, 100, []int{1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := fit(tt.needs, tt.room)
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("got %v, want %v", got, tt.want)
				}
			}
		})
	}
}
