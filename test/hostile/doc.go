// Package hostile is about a bad day of wscastd: limits, floods, and faults of what is around it. Every test starts the built program and asks three
// things: does it stay live (status is answered, and others get their messages), is what it does bounded, and is it afterwards as it was before.
//
//   - limits_test.go: every limit there is, below it, at it and above it, in one table.
//   - address_test.go: where clients come from, over restarts and kills.
//   - floods_test.go: clients and publishers that send as much as they can. WSCAST_TEST_FLOOD=30s makes each flood last as long, instead of a moment.
//   - faults_test.go: no descriptors, a full disk, a clock that jumps, a proxy and a publisher that die.
package hostile
