package daemon

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"

	"wscast/ipc"
)

// AllowConfig is who may publish and subscribe on the publish socket, and what. Without any, whoever can open the socket may do
// everything; with some, what none of them allows is refused. There is no section that takes away, so their order is of no
// matter, and none for root: programs that run as root are what one wants to hold to their channels, and a person who is root
// can write a section.
type AllowConfig struct {
	Users     []string `toml:"users"`
	Groups    []string `toml:"groups"`
	Publish   []string `toml:"publish"`
	Subscribe []string `toml:"subscribe"`
}

// everyone in users is whoever can open the socket. No user has that name.
const everyone = "*"

// maxPattern is as long as a pattern of PSUBSCRIBE may be.
const maxPattern = 256

// allowRules finds the numbers of the users and groups, those of this moment, and checks everything else on the way.
func allowRules(sections []AllowConfig) ([]ipc.Rule, *ConfigError) {
	rules := make([]ipc.Rule, len(sections))
	for i, section := range sections {
		key, rule := fmt.Sprintf("publish.allow[%d]", i), &rules[i]
		if len(section.Users) == 0 && len(section.Groups) == 0 {
			return nil, &ConfigError{Text: key + " is for nobody", Hint: `write users = ["…"], or groups = ["…"], or users = ["*"] for whoever can open the socket`}
		}
		if len(section.Publish) == 0 && len(section.Subscribe) == 0 {
			return nil, &ConfigError{Text: key + " allows nothing", Hint: `write publish = ["…"] with channels and patterns, such as "camera/*", or subscribe = ["…"], or both`}
		}
		for _, name := range section.Users {
			if name == everyone {
				rule.Everyone = true
				continue
			}
			uid, err := number(name, func() (string, error) {
				u, err := user.Lookup(name)
				if err != nil {
					return "", err
				}
				return u.Uid, nil
			})
			if err != nil {
				return nil, notFound(key+".users", name, "user", "/etc/passwd", err)
			}
			rule.UIDs = append(rule.UIDs, uid)
		}
		for _, name := range section.Groups {
			gid, err := number(name, func() (string, error) {
				g, err := user.LookupGroup(name)
				if err != nil {
					return "", err
				}
				return g.Gid, nil
			})
			if err != nil {
				return nil, notFound(key+".groups", name, "group", "/etc/group", err)
			}
			rule.GIDs = append(rule.GIDs, gid)
		}
		for _, list := range []struct {
			key      string
			patterns []string
		}{{".publish", section.Publish}, {".subscribe", section.Subscribe}} {
			for _, pattern := range list.patterns {
				if pattern == "" || len(pattern) > maxPattern {
					return nil, &ConfigError{
						Text: fmt.Sprintf("%s%s = %q is not possible", key, list.key, pattern),
						Hint: fmt.Sprintf("a channel's name or a pattern, such as \"camera/*\", of at most %d bytes; \"*\" is all channels", maxPattern),
					}
				}
			}
		}
		rule.Publish, rule.Subscribe = section.Publish, section.Subscribe
	}
	return rules, nil
}

// number takes a number for itself, whether there is somebody of that number or not, and looks up everything else. The highest
// number is none (chown(2)).
func number(name string, look func() (string, error)) (uint32, error) {
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		if name, err = look(); err != nil {
			return 0, err
		}
		n, err = strconv.ParseUint(name, 10, 32)
	}
	if err == nil && n == math.MaxUint32 {
		err = errors.New("the number is not one of a user or group")
	}
	return uint32(n), err
}

func notFound(key, name, what, file string, err error) *ConfigError {
	var noUser user.UnknownUserError
	var noGroup user.UnknownGroupError
	hint := oneLine(err.Error())
	if errors.As(err, &noUser) || errors.As(err, &noGroup) {
		hint = fmt.Sprintf("there is no such %s in %s: mend the name, add the %s first, or write its number", what, file, what)
	}
	return &ConfigError{Text: fmt.Sprintf("%s = %q is not possible", key, name), Hint: hint}
}
