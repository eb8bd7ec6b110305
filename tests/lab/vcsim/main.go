// The lab's vCenter: govmomi's simulator with the additions in overlay/. It reads its specification from the first
// line of its input, prints where it listens as one line of JSON, and ends when its input does.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"

	_ "github.com/vmware/govmomi/lookup/simulator"
	_ "github.com/vmware/govmomi/pbm/simulator"
	_ "github.com/vmware/govmomi/sts/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
)

type specification struct {
	simulator.LabSpec
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	Host        struct {
		Certificate string `json:"certificate"`
		Key         string `json:"key"`
		Thumbprint  string `json:"thumbprint"`
	} `json:"host"`
	Clusters int  `json:"clusters"`
	Hosts    int  `json:"hosts"` // of each cluster
	Verbose  bool `json:"verbose"`
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err != nil {
		log.Fatalf("reading the specification: %s", err)
	}
	var spec specification
	if err = json.Unmarshal(line, &spec); err != nil {
		log.Fatalf("reading the specification: %s", err)
	}
	if !spec.Verbose {
		log.SetOutput(io.Discard)
	}
	if err = run(&spec, input); err != nil {
		log.SetOutput(os.Stderr)
		log.Fatal(err)
	}
}

func run(spec *specification, input io.Reader) error {
	model := simulator.VPX()
	model.Host, model.Cluster, model.ClusterHost = 0, spec.Clusters, spec.Hosts
	model.Datastore, model.Machine = 0, 0
	if err := model.Create(); err != nil {
		return err
	}
	if err := simulator.Populate(&spec.LabSpec); err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(spec.Certificate, spec.Key)
	if err != nil {
		return err
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	model.Service.RegisterEndpoints = true
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(spec.User, spec.Password)}
	server := model.Service.NewServer()
	server.Config.Handler = simulator.Gate(server.Config.Handler)
	server.Config.ErrorLog = log.Default()
	control, err := simulator.ServeControl(simulator.Surroundings(simulator.Control(server.CloseClientConnections)))
	if err != nil {
		return err
	}
	port := 0
	if spec.ServeFiles {
		if certificate, err = tls.LoadX509KeyPair(spec.Host.Certificate, spec.Host.Key); err != nil {
			return err
		}
		if port, err = simulator.ServeHosts(certificate, spec.Host.Thumbprint); err != nil {
			return err
		}
	}
	ready, err := json.Marshal(map[string]interface{}{"address": server.URL.Host, "control": control, "hosts_port": port})
	if err != nil {
		return err
	}
	if _, err = os.Stdout.Write(append(ready, '\n')); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, input)
	return nil
}
