package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Nginx is a running nginx with the shipped configuration, for http and https. Used by one goroutine.
type Nginx struct {
	// Roots has the certificate that the https site shows.
	Roots *x509.CertPool

	t           testing.TB
	program     string
	dir         string
	port        int
	tlsPort     int
	upstreams   []string
	readTimeout string // of the location, instead of the shipped one
	site        string // more lines in server { }
	process     *process
}

// An NginxOption changes what [StartNginx] starts.
type NginxOption func(*Nginx)

// ReadTimeout replaces the proxy_read_timeout of the shipped location, so that a test can outlive it.
func ReadTimeout(d time.Duration) NginxOption {
	return func(n *Nginx) { n.readTimeout = fmt.Sprintf("%dms", d.Milliseconds()) }
}

// Site adds lines to server { }, before everything else in it.
func Site(lines string) NginxOption {
	return func(n *Nginx) { n.site = lines }
}

// Upstream adds a server to the upstream, by a line as the shipped one.
func Upstream(address string) NginxOption {
	return func(n *Nginx) { n.upstreams = append(n.upstreams, address) }
}

// StartNginx starts nginx in front of a websocket socket, given as host:port or as a path. The files of etc/nginx are included as they
// are shipped, but for the address of the upstream. nginx is stopped when the test ends.
func StartNginx(t testing.TB, upstream string, options ...NginxOption) *Nginx {
	t.Helper()
	n := &Nginx{t: t, program: Find(t, "nginx", "nginx"), dir: tempDir(t), upstreams: []string{upstream}}
	n.port, n.tlsPort = reservePort(t), reservePort(t)
	for _, o := range options {
		o(n)
	}
	n.Roots = writeCertificate(t, n.dir)
	writeFile(t, n.dir, "nginx.conf", n.config())
	n.start()
	return n
}

// URL is the http URL of a path.
func (n *Nginx) URL(path string) string { return "http://" + local(n.port) + path }

// TLSURL is the https URL of a path.
func (n *Nginx) TLSURL(path string) string { return "https://" + local(n.tlsPort) + path }

// WebSocketURL is the ws:// URL of a channel.
func (n *Nginx) WebSocketURL(channel string) string {
	return "ws://" + local(n.port) + WebSocketPath(channel)
}

// WebSocketTLSURL is the wss:// URL of a channel.
func (n *Nginx) WebSocketTLSURL(channel string) string {
	return "wss://" + local(n.tlsPort) + WebSocketPath(channel)
}

// Log is nginx's error log from level notice on.
func (n *Nginx) Log() string { return n.process.log.String() }

// Reload does nginx -s reload and returns when the new worker runs.
func (n *Nginx) Reload() {
	n.t.Helper()
	workers := strings.Count(n.Log(), "start worker process ")
	Run(n.t, n.program, append(n.arguments(), "-s", "reload")...)
	n.process.awaitLog(n.t, "a new worker", func(log string) bool {
		return strings.Count(log, "start worker process ") > workers
	})
}

// Stop ends nginx and its workers at once, which closes every connection through it.
func (n *Nginx) Stop() {
	n.t.Helper()
	if n.process == nil {
		return
	}
	p := n.process
	n.process = nil
	// SIGTERM is the fast way; SIGQUIT would wait for the clients (nginx(8)).
	if err := p.stop(syscall.SIGTERM, stopPatience); err != nil {
		n.t.Errorf("nginx: %v\n%s", err, p.log)
	}
	if strings.Contains(p.log.String(), "exited on signal") {
		n.t.Errorf("a worker of nginx crashed:\n%s", p.log)
	}
}

// Kill ends nginx and its workers with SIGKILL.
func (n *Nginx) Kill() {
	n.t.Helper()
	p := n.process
	n.process = nil
	if err := p.stop(syscall.SIGKILL, stopPatience); err != nil {
		n.t.Errorf("nginx: %v\n%s", err, p.log)
	}
}

// Start starts nginx again after [Nginx.Stop] or [Nginx.Kill], on the same ports.
func (n *Nginx) Start() {
	n.t.Helper()
	n.start()
}

// Requests are the lines of the access log: method, URI, status.
func (n *Nginx) Requests() string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "access.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *Nginx) arguments() []string {
	// -e: before it has read its configuration nginx would log to a file that only root may write.
	return []string{"-e", "stderr", "-p", n.dir, "-c", filepath.Join(n.dir, "nginx.conf")}
}

func (n *Nginx) start() {
	n.t.Helper()
	p, err := startProcess(exec.Command(n.program, n.arguments()...), syscall.SIGTERM)
	if err != nil {
		n.t.Fatal(err)
	}
	n.process = p
	n.t.Cleanup(n.Stop)
	// The master binds the ports before it starts a worker, so connections are accepted from then on.
	p.awaitLog(n.t, "a worker", func(log string) bool { return strings.Contains(log, "start worker process ") })
}

func (n *Nginx) config() string {
	n.t.Helper()
	user := ""
	if os.Getuid() == 0 {
		// The worker would change to a user who may not look into the directories of this test.
		user = "user root;"
	}
	http := n.shipped("wscast-http.conf", `(?m)^\s*server 127\.0\.0\.1:7311\b.*$`, func(line string) string {
		var lines []string
		for _, address := range n.upstreams {
			if strings.HasPrefix(address, "/") {
				address = "unix:" + address
			}
			lines = append(lines, strings.Replace(line, "127.0.0.1:7311", address, 1))
		}
		return strings.Join(lines, "\n")
	})
	location := filepath.Join(Repository(n.t), "etc/nginx/wscast.conf")
	if n.readTimeout != "" {
		location = n.shipped("wscast.conf", `(?m)^\s*proxy_read_timeout\s+\w+;`, func(string) string {
			return "proxy_read_timeout " + n.readTimeout + ";"
		})
	}
	return fmt.Sprintf(`
%s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events { worker_connections 4096; }
http {
	log_format requests "$request_method $request_uri $status";
	access_log access.log requests;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	include %s;
	server {
		listen 127.0.0.1:%d;
		listen 127.0.0.1:%d ssl;
		ssl_certificate certificate.pem;
		ssl_certificate_key key.pem;
		%s
		include %s;
		# What other software has on many sites, and which must not get the requests for a channel.
		location ~ \.php$ { return 410; }
		# The demo page, which a real site has no use for.
		location / {
			proxy_pass http://wscast;
			proxy_set_header Host $http_host;
		}
	}
}
`, user, http, n.port, n.tlsPort, n.site, location)
}

// shipped writes a copy of a file of etc/nginx in which one place is replaced, and returns its path.
func (n *Nginx) shipped(name, place string, by func(string) string) string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(Repository(n.t), "etc/nginx", name))
	if err != nil {
		n.t.Fatal(err)
	}
	at := regexp.MustCompile(place).FindAllIndex(text, -1)
	if len(at) != 1 {
		n.t.Fatalf("etc/nginx/%s: %d places match %s, and the test replaces one", name, len(at), place)
	}
	from, to := at[0][0], at[0][1]
	return writeFile(n.t, n.dir, name, string(text[:from])+by(string(text[from:to]))+string(text[to:]))
}

// writeCertificate writes certificate.pem and key.pem for 127.0.0.1 and localhost and returns what verifies them.
func writeCertificate(t testing.TB, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	certificate := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	signed := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	writeFile(t, dir, "certificate.pem", string(signed))
	writeFile(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(signed)
	return pool
}

// Repository is the directory of module wscast. go knows it from the replace line of this module, wherever the test
// runs.
func Repository(t testing.TB) string {
	t.Helper()
	dir, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var repository = sync.OnceValues(func() (string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "wscast").Output()
	if err != nil {
		return "", fmt.Errorf("finding module wscast: %w", err)
	}
	return strings.TrimSpace(string(dir)), nil
})
