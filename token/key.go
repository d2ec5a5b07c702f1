package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// MinSecret is the shortest secret, in bytes: what is shorter than the hash can be found by trying (RFC 7518 section 3.2).
const MinSecret = 32

const minRSA = 2048 // bits (RFC 7518 section 3.3)

// Key signs or checks tokens. It can be used by several goroutines at the same time.
type Key struct {
	method jwt.SigningMethod
	check  any // what Verify needs
	sign   any // what Sign needs; nil: a public key
}

// Algorithm is the alg of the tokens (RFC 7518 section 3.1).
func (k *Key) Algorithm() string { return k.method.Alg() }

// ParseKey reads the contents of a key file: PEM, or the secret itself, of which a line feed at the end is no part.
func ParseKey(b []byte) (*Key, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		if bytes.Contains(b, []byte("-----BEGIN")) {
			return nil, errors.New("the PEM in it is damaged")
		}
		secret := bytes.TrimRight(b, "\r\n")
		if len(secret) < MinSecret {
			return nil, fmt.Errorf("a secret of %d bytes is too short: %d or more, such as openssl rand -base64 48 makes", len(secret), MinSecret)
		}
		return &Key{jwt.SigningMethodHS256, secret, secret}, nil
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("there is more than one PEM block in it: put one key in it")
	}
	key, err := parseBlock(block)
	if err != nil {
		return nil, err
	}
	k := &Key{}
	if private, ok := key.(crypto.Signer); ok {
		k.sign, key = key, private.Public()
	}
	k.check = key
	switch public := key.(type) {
	case ed25519.PublicKey:
		k.method = jwt.SigningMethodEdDSA
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return nil, fmt.Errorf("an ECDSA key on the curve %s: only P-256 is supported", public.Curve.Params().Name)
		}
		k.method = jwt.SigningMethodES256
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < minRSA {
			return nil, fmt.Errorf("an RSA key of %d bits is too short: %d or more", bits, minRSA)
		}
		k.method = jwt.SigningMethodRS256
	default:
		return nil, fmt.Errorf("a key of the kind %T: Ed25519, ECDSA on P-256, RSA or a secret are supported", key)
	}
	return k, nil
}

func parseBlock(block *pem.Block) (key any, err error) {
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM of the type %q: PUBLIC KEY or PRIVATE KEY is needed", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("the %s in it cannot be read: %w", block.Type, err)
	}
	return key, nil
}
