package pool

import (
	"math"
	"time"
)

// Demand says how many machines of a size are worth keeping: as many as were asked for at
// about the same time lately. A burst counts at once and is forgotten slowly, so that the next one
// finds machines.
//
// Times count from any moment in the past by a clock that never jumps; one that seems to go
// back changes nothing. The zero Demand knows of no request.
type Demand struct {
	at time.Duration // when what follows was true
	// level is the number of requests of the last moments, older ones counting less and less.
	level float64
	// peak is the highest level, less what has been forgotten of it.
	peak float64
}

// moments is how many times faster the level fades than what is remembered of it: with the
// usual five minutes it is about the last 15 seconds' requests.
const moments = 20

// Asked counts a container that asked for a machine, whether it got one or not.
func (d *Demand) Asked(now, remember time.Duration) {
	d.fade(now, remember)
	d.level++
	d.peak = max(d.peak, d.level)
}

// Want is how many machines are worth keeping, between least and most.
func (d *Demand) Want(now, remember time.Duration, least, most int) int {
	d.fade(now, remember)
	return max(least, min(most, int(math.Round(d.peak))))
}

// fade forgets what time has passed over: half of the peak in the time remember.
func (d *Demand) fade(now, remember time.Duration) {
	passed := now - d.at
	if passed <= 0 {
		return
	}
	d.at = now
	halves := passed.Seconds() / max(remember, time.Millisecond).Seconds()
	d.level *= math.Exp2(-halves * moments)
	d.peak = max(d.peak*math.Exp2(-halves), d.level)
}
