// Package monitor is the process that owns one container of the command line: it
// boots the container's virtual machine, keeps its output, answers front
// ends on a control socket, restarts it as its policy says, and leaves nothing
// behind. One monitor serves one container and ends with it; it outlives the front end
// that started it. Package sandbox does the work below; the rules of docker's
// container life cycle live here.
//
// A monitor of a lesser kind serves cp for a container that does not run: it boots the
// machine without the process, and leaves state, logs and ports alone.
//
// Client is the front end's side of the same conversation.
package monitor
