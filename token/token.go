package token

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MaxToken is the longest token that is read, in bytes.
const MaxToken = 4096

// Limits of Claims.
const (
	MaxSubject  = 128 // bytes
	MaxPatterns = 64  // in each list, of at most 128 bytes each
)

// Claims are what a token says.
type Claims struct {
	Subject  string    // sub: who the client is; may be empty
	Expires  time.Time // exp: when it is closed; zero: never
	Channels []string  // channels: patterns of those that it may subscribe to, as in wscast.toml(5)
	Publish  []string  // publish: patterns of those that it may publish to
}

// claims is how they are written.
type claims struct {
	jwt.RegisteredClaims
	Channels []string `json:"channels,omitempty"`
	Publish  []string `json:"publish,omitempty"`
}

// Sign makes a token. It fails for a public key, and for claims that Verify would refuse.
func (k *Key) Sign(c Claims) (string, error) {
	if k.sign == nil {
		return "", errors.New("the key is a public one: a private one is needed to make tokens")
	}
	if err := c.check(); err != nil {
		return "", err
	}
	w := claims{Channels: c.Channels, Publish: c.Publish}
	w.Subject = c.Subject
	w.IssuedAt = jwt.NewNumericDate(time.Now())
	if !c.Expires.IsZero() {
		w.ExpiresAt = jwt.NewNumericDate(c.Expires)
	}
	return jwt.NewWithClaims(k.method, &w).SignedString(k.sign)
}

// Errors of Verify, which say nothing about the key.
var (
	ErrExpired = errors.New("the token has expired")
	ErrInvalid = errors.New("the token is not valid")
)

// Verify reads a token. The errors are ErrExpired, ErrInvalid, or say which of the claims is not as it has to be.
func (k *Key) Verify(text string) (Claims, error) {
	if len(text) > MaxToken {
		return Claims{}, ErrInvalid
	}
	var w claims
	_, err := jwt.ParseWithClaims(text, &w, func(*jwt.Token) (any, error) { return k.check, nil },
		jwt.WithValidMethods([]string{k.method.Alg()}))
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return Claims{}, ErrExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return Claims{}, errors.New("the token is not valid yet: compare the clocks")
	case err != nil:
		return Claims{}, ErrInvalid
	}
	c := Claims{Subject: w.Subject, Channels: w.Channels, Publish: w.Publish}
	if w.ExpiresAt != nil {
		c.Expires = w.ExpiresAt.Time
	}
	return c, c.check()
}

func (c *Claims) check() error {
	if len(c.Subject) > MaxSubject {
		return fmt.Errorf("sub has %d bytes: at most %d", len(c.Subject), MaxSubject)
	}
	for name, patterns := range map[string][]string{"channels": c.Channels, "publish": c.Publish} {
		if len(patterns) > MaxPatterns {
			return fmt.Errorf("%s has %d patterns: at most %d", name, len(patterns), MaxPatterns)
		}
		for _, p := range patterns {
			if len(p) > 128 {
				return fmt.Errorf("%s has a pattern of %d bytes: at most 128", name, len(p))
			}
		}
	}
	return nil
}
