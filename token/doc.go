// Package token makes and reads the tokens that let WebSocket clients in: JSON Web Tokens (RFC 7519), signed with a key that wscastd
// and the application share, or with a private key of which wscastd has the public half.
//
// The kind of key decides the algorithm, and a token that names another one is refused: a public key is never taken for a secret
// (RFC 8725 section 3.1).
//
//	a file that is no PEM           a secret of 32 bytes or more    HS256
//	PEM, Ed25519                    public or private               EdDSA
//	PEM, ECDSA with curve P-256     public or private               ES256
//	PEM, RSA with 2048 bits or more public or private               RS256
package token
