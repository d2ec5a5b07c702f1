// Package test runs the built programs against the programs that people use with them: nginx, Redis clients of several languages and Chromium. Everything is
// real; what starts it is package harness. What has to be installed is in install-deps.
package test
