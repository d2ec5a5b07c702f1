package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// pair is a private key and its public half, as files.
func pair(t *testing.T, private crypto.Signer) (privateFile, publicFile []byte) {
	t.Helper()
	p, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	q, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: q})
}

func parse(t *testing.T, b []byte) *Key {
	t.Helper()
	k, err := ParseKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var secret = []byte(strings.Repeat("s", MinSecret))

func signers(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, minRSA)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"EdDSA": ed, "ES256": ec, "RS256": r}
}

func TestWhatIsSignedIsRead(t *testing.T) {
	want := Claims{Subject: "alice", Expires: time.Now().Add(time.Hour).Truncate(time.Second), Channels: []string{"news", "chat/*"}, Publish: []string{"chat/alice"}}
	files := map[string][2][]byte{"HS256": {secret, append(secret, '\n')}}
	for algorithm, signer := range signers(t) {
		private, public := pair(t, signer)
		files[algorithm] = [2][]byte{private, public}
	}
	for algorithm, file := range files {
		t.Run(algorithm, func(t *testing.T) {
			sign, check := parse(t, file[0]), parse(t, file[1])
			if sign.Algorithm() != algorithm || check.Algorithm() != algorithm {
				t.Fatalf("%s and %s", sign.Algorithm(), check.Algorithm())
			}
			text, err := sign.Sign(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := check.Verify(text)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
			if _, err := check.Sign(want); (err == nil) != (algorithm == "HS256") {
				t.Errorf("a public key signs: %v", err)
			}
			for i := range text { // every byte counts, but for bits of the last one of a part that base64 leaves over
				b := []byte(text)
				b[i] ^= 1
				if got, err := check.Verify(string(b)); err == nil && !reflect.DeepEqual(got, want) {
					t.Fatalf("byte %d: %+v", i, got)
				}
			}
		})
	}
}

func TestKeysThatAreNone(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curve, _ := pair(t, p384)
	_, good := pair(t, signers(t)["EdDSA"])
	for _, test := range []struct{ file, says string }{
		{"", "too short"},
		{strings.Repeat("s", MinSecret-1) + "\n", "a secret of 31 bytes is too short"},
		{string(curve), "P-256"},
		{string(good) + string(good), "more than one"},
		{strings.Replace(string(good), "PUBLIC KEY", "CERTIFICATE", 2), "CERTIFICATE"},
		{strings.Replace(string(good), "MCow", "MCox", 1), "cannot be read"},
		{string(good[:len(good)/2]), "damaged"},
	} {
		if _, err := ParseKey([]byte(test.file)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.40q: %v, want %q", test.file, err, test.says)
		}
	}
}

// The attacks of RFC 8725 section 2: no algorithm, and a public key that is taken for a secret.
func TestForgedTokens(t *testing.T) {
	_, public := pair(t, signers(t)["RS256"])
	check := parse(t, public)
	none := func(alg string) string {
		part := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
		return part(map[string]string{"alg": alg, "typ": "JWT"}) + "." + part(map[string]any{"sub": "root", "channels": []string{"*"}}) + "."
	}
	confused, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "root"}).SignedString(public)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := pair(t, signers(t)["RS256"])
	stranger, err := parse(t, other).Sign(Claims{Subject: "root"})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", ".", "..", "a.b.c", none("none"), none("None"), none("RS256"), confused, stranger, strings.Repeat("a", MaxToken+1)} {
		if c, err := check.Verify(text); err != ErrInvalid {
			t.Errorf("%.60q: %+v, %v", text, c, err)
		}
	}
}

func TestTimesAndLimits(t *testing.T) {
	k := parse(t, secret)
	sign := func(claims jwt.MapClaims) string {
		text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	now := time.Now().Unix()
	for _, test := range []struct {
		claims jwt.MapClaims
		says   string // "": good
	}{
		{jwt.MapClaims{}, ""},
		{jwt.MapClaims{"exp": now + 60}, ""},
		{jwt.MapClaims{"exp": now - 1}, ErrExpired.Error()},
		{jwt.MapClaims{"nbf": now + 60}, "not valid yet"},
		{jwt.MapClaims{"exp": "soon"}, ErrInvalid.Error()},
		{jwt.MapClaims{"channels": "news"}, ErrInvalid.Error()},
		{jwt.MapClaims{"sub": strings.Repeat("n", MaxSubject)}, ""},
		{jwt.MapClaims{"sub": strings.Repeat("n", MaxSubject+1)}, "sub has 129 bytes"},
		{jwt.MapClaims{"channels": make([]string, MaxPatterns)}, ""},
		{jwt.MapClaims{"publish": make([]string, MaxPatterns+1)}, "publish has 65 patterns"},
		{jwt.MapClaims{"channels": []string{strings.Repeat("c", 129)}}, "pattern of 129 bytes"},
	} {
		_, err := k.Verify(sign(test.claims))
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.80v: %v, want %q", test.claims, err, test.says)
		}
	}
	if _, err := k.Sign(Claims{Subject: strings.Repeat("n", MaxSubject+1)}); err == nil {
		t.Error("a token is made that is refused")
	}
}

func FuzzVerify(f *testing.F) {
	k, _ := ParseKey(secret)
	good, _ := k.Sign(Claims{Subject: "alice", Channels: []string{"*"}})
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := k.Verify(text); err == nil && text != good {
			if again, err := k.Sign(c); err != nil {
				t.Fatalf("%+v: %v %s", c, err, again)
			}
		}
	})
}
