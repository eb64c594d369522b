// Package resolver lets a guest ask the name servers that an engine runs on the loopback of a container's
// network namespace, such as Docker's at 127.0.0.11. The guest has a loopback of its own, so its agent
// takes the queries there (package manis/api/names) and this package asks them in the namespace: the port of names of
// the addresses that the container's resolv.conf has, and nothing else.
//
// The package knows neither engines nor what is in the queries.
package resolver
