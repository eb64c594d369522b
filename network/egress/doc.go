// Package egress says where a sandbox may connect to: lists of rules, each of which opens a destination
// (addresses, or names as the sandbox's own name server has answered them) for some protocols and ports. What no
// rule of a list opens is closed. It opens no socket and sees no packet: who does asks a [Guard] first.
package egress
