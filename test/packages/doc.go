// Package packages tests what make deb and make rpm build: the bytes, what lintian and rpmlint say, and, in booted
// machines that have never seen wscast ([booted.Bare]), the life of a package from its installation to its removal,
// upgrades under load included.
//
// The packages are built once a run, from copies of this repository, the later version with other configuration files
// than the first. The rpm is installed on Debian, which has rpm but no packages that it knows of, so without its
// dependencies; what differs on Fedora are the scriptlets, and of those what they say is looked at.
//
// It needs root, the network of no machine but this one's, and what test/install-deps installs.
package packages
