// Package policy is what the operator of a node allows of containers: a file, read strictly, that begins with a
// profile and says what is different; and one decision on one typed request, for which every way to start something
// fills in what it knows. It starts nothing and changes nothing; of the host it looks at where paths lead. It knows
// neither command lines nor engines, registries nor machines.
//
// [Load] gives a nil *Policy where there is no file: it allows everything, as every nil *Policy does. An error of Load
// means that there is a file that does not say what is allowed, so nothing may be started.
package policy
