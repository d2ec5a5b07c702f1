// Package failpoint has the places at which a test kills the process, to see that nothing is lost there.
//
// A point stands at each system call, and each store into memory that outlives the process, between which a kill makes a difference:
//
//	l.m.head.head.Store(seq)
//	failpoint.Pass("append.head")
//
// Without the build tag failpoints Pass is empty and inlined: it costs nothing. With it, the variable
// WSCAST_FAILPOINT names a point and at which pass of it the process sends itself SIGKILL: "append.head 3".
//
// # Adding one
//
// Write the call, with a name that no other call has, as a string in place: test/failpoints_test.go finds the points in the source, and kills a
// daemon at each of them. It fails for a point that is not passed there.
package failpoint
