package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// modules is where Debian's nginx has its modules.
const modules = "/usr/lib/nginx/modules"

// findNginx finds nginx, which is in sbin, with the module that is one of the servers.
func findNginx(_ context.Context, _ string) (string, error) {
	if _, err := os.Stat(filepath.Join(modules, "ngx_nchan_module.so")); err != nil {
		return "", errors.New("no nchan: apt install nginx libnginx-mod-nchan")
	}
	if path, err := exec.LookPath("nginx"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/nginx")
}

// nginx returns how nginx is started with a configuration: so many workers, and what belongs
// into http { }.
func nginx(program string, at place, workers int, load, http string) (process, error) {
	config := filepath.Join(at.dir, "nginx.conf")
	user := ""
	if os.Getuid() == 0 {
		// Workers would change to a user who may not look into the bench's directory.
		user = "user root;"
	}
	// Every client takes a connection of a worker, and behind a proxy two.
	text := fmt.Sprintf(`%s
%s
daemon off;
pid nginx.pid;
error_log stderr error;
worker_processes %d;
events { worker_connections 60000; }
http {
	access_log off;
	# A publisher stays.
	keepalive_requests 1000000000;
	keepalive_timeout 1h;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
%s
}
`, load, user, workers, http)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return process{}, err
	}
	return process{program, []string{"-e", "stderr", "-p", at.dir, "-c", config}, workers}, nil
}

// nchan is nginx with its push module. Messages wait in shared memory for workers and clients
// that are behind: more of them than are ever in flight here, where 10 is the default.
func nchan(workers int) func(programs, place) ([]process, error) {
	return func(p programs, at place) ([]process, error) {
		n, err := nginx(p["nginx"], at, workers, "load_module "+modules+"/ngx_nchan_module.so;", fmt.Sprintf(`
	nchan_shared_memory_size 256M;
	nchan_message_buffer_length 1000;
	nchan_message_timeout 10s;
	server {
		listen %s backlog=4096;
		listen unix:%s;
		location /websocket {
			nchan_subscriber websocket;
			nchan_channel_id $uri;
			nchan_subscriber_first_message newest;
		}
		location /publish {
			nchan_publisher;
			nchan_channel_id $arg_channel;
		}
	}`, at.address, at.publish))
		return []process{n}, err
	}
}

// behindNginx is wscastd with nginx in front of it, configured by the files that are shipped.
func behindNginx(network string) func(programs, place) ([]process, error) {
	return func(p programs, at place) ([]process, error) {
		listen, upstream := at.upstream, at.upstream
		if network == "unix" {
			listen = filepath.Join(at.dir, "websocket.sock")
			upstream = "unix:" + listen
		}
		root, err := output(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "wscast"))
		if err != nil {
			return nil, err
		}
		shipped := filepath.Join(strings.TrimSpace(root), "etc/nginx")
		text, err := os.ReadFile(filepath.Join(shipped, "wscast-http.conf"))
		if err != nil {
			return nil, err
		}
		const server = "\tserver 127.0.0.1:7311 "
		if strings.Count(string(text), server) != 1 {
			return nil, fmt.Errorf("%s/wscast-http.conf has not one line %q", shipped, server)
		}
		http := strings.Replace(string(text), server, "\tserver "+upstream+" ", 1)
		n, err := nginx(p["nginx"], at, 1, "", fmt.Sprintf(`%s
	server {
		listen %s backlog=4096;
		include %s;
	}`, http, at.address, filepath.Join(shipped, "wscast.conf")))
		return []process{{p["wscastd"], []string{"--websocket", listen, "--publish", at.publish}, 0}, n}, err
	}
}
